# A worker: the package and what it needs, a user without rights, a health check that asks the worker.
# For an image of your own:  FROM perdure:...  then  COPY my_agents /app/my_agents

FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
COPY . .
# requirements.txt pins every version; what only tests need is not installed.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint requirements.txt ".[openai,otlp,prometheus]"

FROM python:3.11.13-slim-bookworm
RUN useradd --system --uid 10001 --user-group --create-home perdure \
    && install --directory --owner perdure --group perdure --mode 0700 /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PERDURE_HOME=/data \
    PERDURE_HEALTH_ADDRESS=0.0.0.0:8080
WORKDIR /app
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 \
    CMD ["python", "-m", "perdure.workers.observe.health", "http://127.0.0.1:8080/ready"]
ENTRYPOINT ["perdure"]
CMD ["worker", "--help"]
