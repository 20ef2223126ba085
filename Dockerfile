# syntax=docker/dockerfile:1
# For processors:     docker build -t carvana_tf .
# For NVIDIA GPUs:    docker build -t carvana_tf:cuda --build-arg VARIANT=cuda .
# With extras:        docker build -t carvana_tf --build-arg EXTRAS=openvino,tensorboard .
# docs/docker.md says how to run it.
FROM python:3.11-slim-bookworm AS base
# What OpenCV loads; its versions are Debian's newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/carvana_tf/bin:$PATH PYTHONUNBUFFERED=1

FROM base AS build
ARG VARIANT=cpu
ARG EXTRAS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python3.11 -m venv /opt/carvana_tf
COPY requirements.txt requirements.lock ./
# The versions of the lock file without its hashes: it has developers' packages as well, and not
# those of CUDA.
RUN sed -nE 's/^([A-Za-z0-9._-]+==[^ ;]+).*/\1/p' requirements.lock > constraints.txt
RUN case "$VARIANT" in \
        cpu) pip install -c constraints.txt -r requirements.txt ;; \
        cuda) pip install -c constraints.txt -r requirements.txt 'tensorflow[and-cuda]' ;; \
        *) echo "VARIANT is '$VARIANT', not cpu or cuda" >&2; exit 1 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY carvana_tf/ carvana_tf/
RUN pip install -c constraints.txt ".${EXTRAS:+[$EXTRAS]}" && carvana-tf --version

FROM base
RUN useradd --uid 1000 --create-home user && install --directory --owner=user /work
COPY --from=build /opt/carvana_tf/ /opt/carvana_tf/
COPY folds.csv /opt/carvana_tf/
COPY recipes/ /opt/carvana_tf/recipes/
USER 1000
WORKDIR /work
ENTRYPOINT ["carvana-tf"]
CMD ["--help"]
