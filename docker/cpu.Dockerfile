# syntax=docker/dockerfile:1
# mail_jax on CPUs; with the web page: --build-arg REQUIREMENTS=requirements-app.txt
#   docker build -f docker/cpu.Dockerfile -t mail_jax:cpu .
# docker/README.md describes its use.

FROM python:3.12-slim-bookworm AS wheel
WORKDIR /clone
COPY LICENSE README.md pyproject.toml ./
COPY configs configs
COPY input_pipeline input_pipeline
COPY mail_jax mail_jax
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/tmp/cache

# Pinned requirements come first: they change less often than the code and are larger.
ARG REQUIREMENTS=requirements.txt
WORKDIR /requirements
COPY requirements.txt requirements-app.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes -r "$REQUIREMENTS"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps /wheels/*.whl && pip check

RUN useradd --create-home --uid 1000 mail
USER 1000
WORKDIR /home/mail
# The web page, `mail-jax app --host 0.0.0.0`.
EXPOSE 7860
ENTRYPOINT ["mail-jax"]
CMD ["--help"]
