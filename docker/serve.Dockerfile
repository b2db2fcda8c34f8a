# syntax=docker/dockerfile:1
# A server for one model (docs/serving.md), on a CPU, as a user without rights:
#   docker build -f docker/serve.Dockerfile -t accel-flowers-serve .
#   docker run --rm -p 8000:8000 -e ACCEL_FLOWERS_TOKEN=... -v "$PWD/runs/first/model:/model:ro" --read-only --tmpfs /tmp accel-flowers-serve
FROM python:3.12-slim

# An index whose torch is for CPUs makes the image a fraction of the size: --build-arg PIP_INDEX_URL=... with PIP_EXTRA_INDEX_URL=...
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY accelerate_configs accelerate_configs
COPY docs/guarantees.md docs/guarantees.md
COPY accel_flowers accel_flowers
# hadolint ignore=DL3013
RUN pip install ".[serve,timm,export]" \
    && useradd --uid 10001 --create-home flowers

WORKDIR /home/flowers
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["accel-flowers", "serve"]
CMD ["/model", "--host", "0.0.0.0", "--log-format", "json"]
