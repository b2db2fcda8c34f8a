# syntax=docker/dockerfile:1
# A server for one exported file (docs/serving.md): without torch, on a CPU, as a user without rights.
#   accel-flowers export runs/first/model --out flowers.onnx
#   docker build -f docker/serve.Dockerfile -t accel-flowers-serve .
#   docker run --rm -p 8000:8000 -e ACCEL_FLOWERS_TOKEN=... -v "$PWD/flowers.onnx:/model.onnx:ro" --read-only --tmpfs /tmp accel-flowers-serve
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# What answering for an ONNX file takes; all else that the project depends on, torch first of all, is left out.
# hadolint ignore=DL3013
RUN pip install \
    fastapi \
    jinja2 \
    numpy \
    onnxruntime \
    pillow \
    platformdirs \
    prometheus-client \
    pydantic \
    python-multipart \
    ruamel.yaml \
    safetensors \
    simplejpeg \
    tqdm \
    tyro \
    uvicorn

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY accelerate_configs accelerate_configs
COPY docs/guarantees.md docs/guarantees.md
COPY accel_flowers accel_flowers
RUN pip install --no-deps . \
    && useradd --uid 10001 --create-home flowers

WORKDIR /home/flowers
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["accel-flowers", "serve"]
CMD ["/model.onnx", "--host", "0.0.0.0", "--log-format", "json"]
