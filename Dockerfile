# The service, without torch: docker build -t digits . && docker run --rm -p 127.0.0.1:8000:8000 digits
FROM python:3.11-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY digits digits
RUN pip install --no-cache-dir build && python -m build --wheel

FROM python:3.11-slim
RUN useradd --create-home digits
COPY --from=wheel /source/dist/*.whl /tmp/
RUN pip install --no-cache-dir /tmp/*.whl && rm /tmp/*.whl
USER digits
WORKDIR /home/digits
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
CMD ["digits", "serve", "--host", "0.0.0.0", "--port", "8000"]
