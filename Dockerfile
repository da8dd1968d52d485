# Isthmus as a server: see docs/operation.md. From a clone: docker build -t isthmus .
FROM python:3.12-slim
# GNU's OpenMP, which the wheel's kernels are linked with, is not in slim images
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip install --no-cache-dir '/src[serve]' && rm -rf /src
RUN useradd --system --uid 10001 --home-dir /data isthmus && install -d -o isthmus /data
USER isthmus
ENV ISTHMUS_HOST=0.0.0.0 ISTHMUS_DATA=/data/agents ISTHMUS_CACHE=/data/cache ISTHMUS_KEYS=/data/keys
VOLUME /data
EXPOSE 8080
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=5)"]
ENTRYPOINT ["isthmus"]
CMD ["serve"]
