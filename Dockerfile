# Two images from one file: `api` (small, no torch; also runs Flower) and `worker` (torch).
#
#   docker build --target api -t celeriac-api .
#   docker build --target worker -t celeriac-worker .

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --uid 10001 --create-home celeriac
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./

FROM base AS api
COPY tasks tasks
COPY api api
COPY celeriac celeriac
RUN pip install --constraint constraints.txt '.[api,flower]'
USER celeriac
EXPOSE 8000
CMD ["celeriac", "api", "--host", "0.0.0.0", "--port", "8000"]

# The kernels for each kind of processor on which the image may run. The image itself has no compiler.
FROM base AS kernels
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY worker/engine/native worker/engine/native
RUN python -m worker.engine.native.library /kernels

FROM base AS worker
COPY tasks tasks
COPY worker worker
COPY --from=kernels /kernels worker/engine/native/built
COPY celeriac celeriac
# The pinned torch includes CUDA on platforms that have it, and also runs on a CPU.
RUN pip install --constraint constraints.txt '.[worker]'
USER celeriac
CMD ["celeriac", "worker"]
