#!/usr/bin/env bash
# From nothing to a trained model: photos -> accelerate launch -> test score -> predictions.
#   scripts/quickstart.sh            on drawn flowers, from random weights
#   scripts/quickstart.sh DIR        on your own photos (DIR/CLASS/*.jpg), fine-tuning a ResNet-18 with ImageNet weights
#   scripts/quickstart.sh DIR --train.epochs 5 ...   flags after DIR go to training
# Everything it makes lies in runs/ of this project.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment

if [ $# -eq 0 ]; then
    photos="$project/runs/sample-photos" recipe=quickstart
    [ -d "$photos" ] || accel-flowers sample "$photos"
else
    photos=$1 recipe=resnet18-finetune
    shift
fi
run="$project/runs/quickstart-$(date +%Y%m%d-%H%M%S)"
devices=$(python -c 'import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)')
case $devices in
    0) config=cpu ;;
    1) config=single_gpu ;;
    *) config=multi_gpu ;;
esac
launch=()
[ "$config" = multi_gpu ] && launch=(--num_processes "$devices")
[ "$config" = cpu ] && launch=(--num_cpu_threads_per_process "$(nproc)")

# --quiet: where training ends with a message, the launcher adds no traceback of its own
accelerate launch --quiet --config_file "$project/accelerate_configs/$config.yaml" "${launch[@]}" \
    -m accel_flowers train "$recipe" --data.path "$photos" --run-dir "$run" --data.split 80/10/10 "$@"

echo
echo "The test part once more, from the saved model alone:"
accel-flowers evaluate "$run/model" --data "$photos" --split "$run/split.json" --part test
echo
echo "Predictions for the first picture of each class:"
first=()
for class in "$photos"/*/; do
    first+=("$(find "$class" -type f | sort | sed -n 1p)")
done
accel-flowers predict "$run/model" "${first[@]}" --top-k 2
echo
echo "Run directory: $run"
