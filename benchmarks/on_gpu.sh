#!/usr/bin/env bash
# Everything about speed that needs a GPU, in some ten minutes: benchmarks/on_gpu.sh PHOTOS OUT
# PHOTOS holds one folder of pictures a class. What each part prints goes to OUT, a file a part; a part that fails, or takes
# too long, spoils none of the others.
set -uo pipefail
photos=${1:?PHOTOS: a folder of one folder of pictures a class} out=${2:?OUT: a folder for what is printed}
mkdir -p "$out"
photos=$(realpath "$photos") out=$(realpath "$out")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rm -rf "$out/profiled"

part() { # NAME SECONDS COMMAND...
  echo "$1"
  timeout "$2" "${@:3}" > "$out/$1.txt" 2> "$out/$1.err" || echo "$1 ended with $?" | tee -a "$out/$1.err"
}

run=(benchmarks/whole_run.py --launch accelerate_configs/single_gpu.yaml --)
recipe=(resnet18-finetune --data.path "$photos" --model.weights none --train.epochs 25)
nvidia-smi > "$out/machine.txt"
part loading 60 python benchmarks/loading.py --data.path "$photos" --rounds 3 --seconds 2
part start 60 python benchmarks/start.py --data.path "$photos" --repeats 2
part whole_run 100 python "${run[@]}" "${recipe[@]}"
part whole_run_again 60 python "${run[@]}" "${recipe[@]}" --tracking.no-report
part whole_run_files 60 python "${run[@]}" "${recipe[@]}" --tracking.no-report --data.pixels-from files
part benchmark 60 accelerate launch --config_file accelerate_configs/single_gpu.yaml -m accel_flowers \
  benchmark resnet18-finetune --data.path "$photos" --model.weights none --seconds 2
part profile 60 accelerate launch --config_file accelerate_configs/single_gpu.yaml -m accel_flowers \
  train "${recipe[@]}" --run-dir "$out/profiled" --debug.profile --train.epochs 2 --schedule.warmup-epochs 0
part peers 150 python benchmarks/peers.py --data.path "$photos" --device cuda --precision own bf16 --batch 128 --steps 60 --replicate 8
part gpu 300 python benchmarks/gpu.py --minutes 4
