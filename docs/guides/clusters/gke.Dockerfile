# docker build -t "$IMAGE" -f docs/guides/clusters/gke.Dockerfile . && docker push "$IMAGE"
FROM python:3.12-slim
WORKDIR /mail_jax
COPY requirements.txt requirements-tpu.txt .
RUN pip install --no-cache-dir -r requirements.txt -r requirements-tpu.txt
RUN pip install --no-cache-dir gcsfs
COPY . .
