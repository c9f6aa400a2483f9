# Runs spintune on a CPU or NVIDIA GPUs. How to: docs/how-to/docker.md
#   docker build -t spintune .                                          torch with CUDA, which also runs on a CPU
#   docker build -t spintune:cpu --build-arg TORCH_INDEX=URL .          torch from PyTorch's index for CPUs, 3 GB less
#   docker run --rm --gpus all -v "$PWD:/work" -v spintune-cache:/cache spintune run quickstart
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
RUN python -m pip install --no-cache-dir build==1.6.1
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY src src
RUN python -m build --wheel --outdir /wheel

FROM python:${PYTHON}-slim
ARG TORCH_INDEX=
ARG EXTRAS=eval,memory,tensorboard,xlsx
# g++ builds the compiled layers at the first run, for the processor that is there then
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/constraints.txt
# torch is the largest part and changes least, so it is a layer of its own
RUN python -m pip install --no-cache-dir --constraint /tmp/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY --from=wheel /wheel /tmp/wheel
RUN python -m pip install --no-cache-dir --constraint /tmp/constraints.txt "spintune[${EXTRAS}] @ file://$(echo /tmp/wheel/*.whl)" \
    && useradd --create-home --uid 1000 spintune \
    && mkdir /cache /work \
    && chown spintune: /cache /work
ENV XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface
USER 1000
WORKDIR /work
VOLUME /cache
ENTRYPOINT ["spintune"]
CMD ["--help"]
