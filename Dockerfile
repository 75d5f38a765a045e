# The gateway alone: Postgres and Redis are external (see compose.yaml). Engines are reached over HTTP or gRPC.
FROM python:3.12-slim-bookworm AS build

WORKDIR /build
RUN python -m venv /opt/gateway
COPY requirements-serve.lock ./
RUN /opt/gateway/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r requirements-serve.lock
COPY pyproject.toml README.md LICENSE ./
COPY backends backends
COPY gateway gateway
COPY ledger ledger
RUN /opt/gateway/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation --no-index . \
    && /opt/gateway/bin/python -m compileall -q /opt/gateway


FROM python:3.12-slim-bookworm

# DATA_DIR holds the journals of the workers: give it a volume that survives the container.
RUN useradd --system --uid 10001 --home-dir /data --create-home pareta
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=8080 \
    DATA_DIR=/data
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/healthz', timeout=4)"]
ENTRYPOINT ["pareta-gateway"]
CMD ["serve"]
