#!/usr/bin/env bash
# From nothing to a trained model: photos -> accelerate launch -> test score -> predictions.
#   scripts/quickstart.sh            on drawn flowers, from random weights
#   scripts/quickstart.sh DIR        on your own photos (DIR/CLASS/*.jpg), fine-tuning a network with ImageNet weights
#   scripts/quickstart.sh DIR --train.epochs 5 ...   flags after DIR go to training
# Everything it makes lies in runs/ of this project.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [ $# -eq 0 ]; then
    prepare_environment
    photos="$project/runs/sample-photos" recipe=quickstart
    [ -d "$photos" ] || accel-flowers sample "$photos"
else
    prepare_environment timm
    photos=$1 recipe=flagship
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
echo "Scored once more, from the saved model alone:"
accel-flowers evaluate "$run/model" --data "$photos" --split "$run/split.json"
if [ -d "$photos" ]; then
    echo
    echo "Predictions for a picture of each class that was not trained on:"
    mapfile -d '' -t unseen < <(python - "$run/split.json" "$photos" <<'PYTHON'
import json, pathlib, sys

split, photos = json.load(open(sys.argv[1])), pathlib.Path(sys.argv[2])
first = {}
for name, part in sorted(split["parts"].items()):
    if part != "train":
        first.setdefault(name.split("/")[-2], photos / name)
print(*first.values(), sep="\0", end="\0")
PYTHON
    )
    accel-flowers predict "$run/model" "${unseen[@]}" --top-k 2
fi
echo
echo "Run directory: $run"
echo "The program is $project/.venv/bin/accel-flowers; 'source $project/.venv/bin/activate' puts it on the path."
