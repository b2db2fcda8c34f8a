#!/usr/bin/env bash
# The rows of benchmarks/RESULTS.md that need a GPU:
#   benchmarks/measure.sh [--quick] PHOTOS OUT [PART...]
# PHOTOS holds one folder of pictures a class: some 1,100 pictures or more. Parts, each of less than ten minutes; none named =
# all, in this order:
#   run       25 epochs second by second, twice, then from files; where the time of a step goes
#   benchmark loading, computing and both, with crop and flip and with colour; the start
#   peers     end to end beside transformers' example and timm's script, in turn
#   gpu       what the device makes of images and of the step
#   loading   JPEG to batch on one core
# What is printed goes to OUT/PART.log. What fails or takes too long spoils nothing else; the exit code is 1 then.
# --quick takes a few steps of tiny pictures, on the CPU where there is no GPU: to see whether it runs.
# It needs the checkout, and python3 (or what PYTHON names) with the libraries of pyproject.toml; benchmarks/missing_wheels.py
# fetches what a machine without a network lacks. First of all: accel-flowers selfcheck.
set -uo pipefail
quick=
[ "${1:-}" = --quick ] && quick=1 && shift
photos=${1:?PHOTOS: a folder of one folder of pictures a class} out=${2:?OUT: a folder for what is printed}
shift 2
mkdir -p "$out"
photos=$(realpath "$photos") out=$(realpath "$out")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
touch "$scratch/ok"

if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  device=cuda config=accelerate_configs/single_gpu.yaml
elif [ -n "$quick" ]; then
  device=cpu config=accelerate_configs/cpu.yaml
else
  echo "torch sees no GPU here: what is measured would be no row of RESULTS.md. Take --quick to see whether it runs." >&2
  exit 2
fi
launch=("$python" -m accelerate.commands.launch --config_file "$config" -m accel_flowers)
run=("$python" benchmarks/whole_run.py --launch "$config" --)
recipe=(resnet18-finetune --data.path "$photos" --model.weights none --train.epochs 25)
sizes=() seconds=2 repeats=3 peers=(--batch 128 --steps 20 --warmup 5 --repeats 2 --replicate 4) gpu=(--minutes 8) rounds=3
crop='RandomResizedCrop: {size: 224}'
if [ -n "$quick" ]; then
  crop='RandomResizedCrop: {size: 32}'
  sizes=(--data.train-transforms "[$crop]" --data.eval-transforms '[Resize: {size: [32, 32]}]' --train.global-batch-size 8)
  recipe=(quickstart --data.path "$photos" --train.epochs 2 --schedule.warmup-epochs 0 "${sizes[@]}")
  seconds=0.1 repeats=1 peers=(--batch 4 --steps 2 --warmup 1 --repeats 1 --size 32) gpu=(--minutes 1 --quick) rounds=1
fi
colour=("${sizes[@]}" --data.train-transforms "[$crop, RandomHorizontalFlip, ColorJitter: {brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1}, RandomRotation: {degrees: 10}, RandomGrayscale: {p: 0.2}]")

limited() { # NAME SECONDS COMMAND...
  echo "== $1"
  timeout --kill-after 10 "$2" "${@:3}" && return
  echo "$1 ended with $?" && rm -f "$scratch/ok"
}

part_run() { # 540 s at the most
  limited whole_run 120 "${run[@]}" "${recipe[@]}"
  limited whole_run_again 90 "${run[@]}" "${recipe[@]}"
  limited whole_run_colour 90 "${run[@]}" "${recipe[@]}" "${colour[@]}"
  limited whole_run_files 120 "${run[@]}" "${recipe[@]}" --tracking.no-report --data.pixels-from files
  limited profile 120 "${launch[@]}" train "${recipe[@]}" --run-dir "$scratch/profiled" --debug.profile --train.epochs 2 \
    --schedule.warmup-epochs 0 --tracking.no-report
  cat "$scratch/profiled/profile/table.txt" || rm -f "$scratch/ok"
}

part_benchmark() { # 500 s at the most
  local words=(benchmark resnet18-finetune --data.path "$photos" --model.weights none --seconds "$seconds")
  limited benchmark 150 "${launch[@]}" "${words[@]}" "${sizes[@]}"
  limited benchmark_colour 150 "${launch[@]}" "${words[@]}" "${colour[@]}"
  limited start 200 "$python" benchmarks/start.py --data.path "$photos" --repeats "$repeats"
}

part_peers() { # 570 s at the most
  limited peers 570 "$python" benchmarks/peers.py --data.path "$photos" --device "$device" --precision bf16 "${peers[@]}"
}

part_gpu() { # 570 s at the most
  limited gpu 570 "$python" benchmarks/gpu.py --device "$device" "${gpu[@]}"
}

part_loading() { # 300 s at the most
  limited loading 300 "$python" benchmarks/loading.py --data.path "$photos" --rounds "$rounds" --seconds "$seconds"
}

all="run benchmark peers gpu loading"
for part in ${@:-$all}; do
  case " $all " in
  *" $part "*) ;;
  *) echo "There is no part '$part'. Parts: $all." >&2 && exit 2 ;;
  esac
done
for part in ${@:-$all}; do
  {
    date -u +%FT%TZ
    git log -1 --format='commit %h' 2> /dev/null
    nvidia-smi 2> /dev/null
    "part_$part"
  } 2>&1 | tee "$out/$part.log"
done
[ -e "$scratch/ok" ]
