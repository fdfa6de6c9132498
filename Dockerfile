# One image for every function and for `metrics-ingest migrate`. FUNCTION_TARGET and FUNCTION_SOURCE choose the function.

FROM python:3.13-slim AS build
# Another package index, where the public one is not reachable: --build-arg PIP_INDEX_URL=…
ARG PIP_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore PIP_ONLY_BINARY=:all:
WORKDIR /build
COPY requirements.lock requirements-dev.lock deploy/build.lock ./
RUN python -m venv --without-pip /app/venv \
 && pip --python /app/venv/bin/python install --require-hashes -r requirements.lock \
 && pip install --require-hashes -r build.lock
# The files of Swagger UI, for the API page; the package around them would bring a web framework.
RUN sed -n '/^flask-swagger-ui==/,/[^\\]$/p' requirements-dev.lock > swagger-ui.lock \
 && pip install --require-hashes --no-deps --target swagger-ui -r swagger-ui.lock \
 && mkdir -p /app/venv/share/swagger-ui \
 && cd swagger-ui/flask_swagger_ui/dist \
 && cp swagger-ui.css swagger-ui-bundle.js favicon-32x32.png /app/venv/share/swagger-ui/
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY migrations migrations
RUN pip wheel --no-deps --no-build-isolation --wheel-dir wheel . \
 && pip --python /app/venv/bin/python install --no-deps wheel/*.whl
COPY functions /app/functions
# Nothing can write bytecode at run time: the user is not root. "unchecked": the sources of an image do not change.
RUN python -m compileall -q --invalidation-mode unchecked-hash /app

# What `metrics-ingest load` needs more than the functions: the extra `cli`.
FROM build AS build-cli
RUN sed -n '/^\(requests\|urllib3\|idna\|certifi\|charset-normalizer\)==/,/[^\\]$/p' requirements-dev.lock > cli.lock \
 && pip --python /app/venv/bin/python install --require-hashes --no-deps -r cli.lock

FROM python:3.13-slim AS functions
# The base image comes without the standard library's bytecode, and a start would compile what it imports each time.
RUN python -m compileall -q --invalidation-mode unchecked-hash -x '/(site-packages|idlelib|tkinter|test|ensurepip|lib2to3)/' \
    /usr/local/lib/python3.13 \
 && useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin app
COPY --from=build /app /app
# gunicorn keeps a socket in XDG_RUNTIME_DIR, or in a home that this user does not have.
ENV PATH=/app/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    XDG_RUNTIME_DIR=/tmp PORT=8080 FUNCTION_TARGET=ingest FUNCTION_SOURCE=/app/functions/ingest/main.py
WORKDIR /app
# A number, so that Kubernetes can check runAsNonRoot; it has a passwd entry, because yoyo records who migrated.
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PORT'], timeout=2)"]
CMD ["functions-framework"]

# docker build --target cli: the same with all commands of `metrics-ingest`.
FROM functions AS cli
COPY --from=build-cli /app/venv /app/venv
HEALTHCHECK NONE
ENTRYPOINT ["metrics-ingest"]
CMD ["--help"]

# The default: without a --target the last stage is built.
FROM functions
