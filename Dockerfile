# docker build -t wganlab .        its check is the demo: the image is built only if that runs
# docker run --rm -v "$PWD/outputs:/wganlab/outputs" wganlab train loss=wgan_gp dataset=digits
FROM python:3.12-slim-bookworm
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --no-install-recommends --yes git make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /wganlab
COPY . .
RUN make demo && rm -rf outputs /root/.cache/pip
ENTRYPOINT ["/wganlab/.venv/bin/wganlab"]
CMD ["--help"]
