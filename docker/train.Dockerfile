# syntax=docker/dockerfile:1
# Training and everything else, on NVIDIA GPUs or a CPU, as a user without rights:
#   docker build -f docker/train.Dockerfile -t accel-flowers .
#   docker run --rm --gpus all --shm-size 4g -v "$PWD/photos:/photos:ro" -v flowers-runs:/runs accel-flowers \
#     train flagship --data.path /photos --run-dir /runs/first
# On several GPUs: --entrypoint accelerate ... launch --config_file ... -m accel_flowers train ...
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# gcc: Triton compiles its launcher with it, for the changes of colour on a GPU.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY accelerate_configs accelerate_configs
COPY docs/guarantees.md docs/guarantees.md
COPY accel_flowers accel_flowers
# hadolint ignore=DL3013
RUN pip install ".[timm,tune,tensorboard,export,serve]" \
    && useradd --uid 10001 --create-home flowers \
    && install --directory --owner 10001 --group 10001 /runs

WORKDIR /runs
USER 10001
VOLUME /runs
# SIGTERM asks for a checkpoint; give it time (docker stop --time 120).
STOPSIGNAL SIGTERM
ENTRYPOINT ["accel-flowers"]
CMD ["--help"]
