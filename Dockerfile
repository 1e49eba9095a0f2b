# A GPU box with the study's packages, as tested:
#   docker build --tag docvlm . && docker run --gpus all docvlm docvlm-rehearse --preset qwen2-vl-2b
FROM nvidia/cuda:13.0.3-runtime-ubuntu24.04
COPY --from=ghcr.io/astral-sh/uv:0.13.8 /uv /usr/local/bin/uv

# libraries that opencv loads; Ubuntu removes old versions, so they are not pinned
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libgl1 libglib2.0-0t64 libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 docvlm

USER 10001
WORKDIR /home/docvlm/docvlm
ENV PATH=/home/docvlm/venv/bin:$PATH HF_HOME=/home/docvlm/huggingface UV_LINK_MODE=copy

# the packages first: they change less often than the code
COPY --chown=docvlm:docvlm requirements.lock ./
RUN uv venv --python 3.11 /home/docvlm/venv \
    && uv pip install --python /home/docvlm/venv --no-cache --requirements requirements.lock

COPY --chown=docvlm:docvlm settings.ini setup.py README.md LICENSE ./
COPY --chown=docvlm:docvlm nbs nbs
COPY --chown=docvlm:docvlm docvlm docvlm
COPY --chown=docvlm:docvlm paper paper
COPY --chown=docvlm:docvlm figures figures
COPY --chown=docvlm:docvlm data data
RUN uv pip install --python /home/docvlm/venv --no-cache --no-deps --editable . \
    && mkdir --parents data/runs data/cache /home/docvlm/huggingface

CMD ["docvlm-study", "--preset", "qwen2-vl-2b"]
