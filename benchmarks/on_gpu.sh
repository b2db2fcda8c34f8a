#!/usr/bin/env bash
# Everything about speed that needs a GPU: benchmarks/on_gpu.sh PHOTOS OUT [first|second]
# Two halves of less than ten minutes each; without a third word, both. PHOTOS holds one folder of pictures a class: some 1,100
# pictures or more, in the machine's file cache after the first part. All that is printed goes to OUT/HALF.log; a part that
# fails, or takes too long, spoils none of the others.
set -uo pipefail
photos=${1:?PHOTOS: a folder of one folder of pictures a class} out=${2:?OUT: a folder for what is printed}
mkdir -p "$out"
photos=$(realpath "$photos") out=$(realpath "$out")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

part() { # NAME SECONDS COMMAND...
  echo "== $1"
  timeout "$2" "${@:3}" || echo "$1 ended with $?"
}

launch=(accelerate launch --config_file accelerate_configs/single_gpu.yaml -m accel_flowers)
run=(python benchmarks/whole_run.py --launch accelerate_configs/single_gpu.yaml --)
recipe=(resnet18-finetune --data.path "$photos" --model.weights none --train.epochs 25)
colour=(--data.train-transforms '[RandomResizedCrop: {size: 224}, RandomHorizontalFlip, ColorJitter: {brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1}, RandomRotation: {degrees: 10}, RandomGrayscale: {p: 0.2}]')

first() { # 530 s at the most
  nvidia-smi
  part whole_run 90 "${run[@]}" "${recipe[@]}"
  part whole_run_again 60 "${run[@]}" "${recipe[@]}"
  part whole_run_files 60 "${run[@]}" "${recipe[@]}" --tracking.no-report --data.pixels-from files
  part benchmark 80 "${launch[@]}" benchmark resnet18-finetune --data.path "$photos" --model.weights none --seconds 2
  part benchmark_colour 80 "${launch[@]}" benchmark resnet18-finetune --data.path "$photos" --model.weights none \
    --seconds 2 "${colour[@]}"
  part profile 60 "${launch[@]}" train "${recipe[@]}" --run-dir "$scratch/profiled" --debug.profile --train.epochs 2 \
    --schedule.warmup-epochs 0
  cat "$scratch/profiled/profile/table.txt"
  part start 100 python benchmarks/start.py --data.path "$photos" --repeats 3
}

second() { # 560 s at the most
  nvidia-smi
  part peers 260 python benchmarks/peers.py --data.path "$photos" --device cuda --precision bf16 --batch 128 --steps 20 \
    --warmup 5 --repeats 2 --replicate 4
  part gpu 240 python benchmarks/gpu.py --minutes 3.5
  part loading 60 python benchmarks/loading.py --data.path "$photos" --rounds 3 --seconds 2
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for half in ${3:-first second}; do
  "$half" 2>&1 | tee "$out/$half.log"
done
