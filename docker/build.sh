#!/usr/bin/env bash
# Builds the images of the steps and prints their names and sizes. What it may be told, by the environment:
#   TARGETS=cpu             only these of cpu and gpu
#   CONTAINER_TOOL=podman   docker, podman or buildah; the first that works is taken
#   BASE_IMAGE=…            instead of python:3.11-slim-bookworm
#   REGISTRY=…              put before the names, e.g. registry.example/team
#   BUILD_FLAGS=…           further flags of the tool's build, e.g. --volume=/etc/pip.conf:/etc/pip.conf:ro
# The tag is the commit's, with -dirty where the tree has changes of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

works() {
    case $1 in
        docker | podman) "$1" info >/dev/null 2>&1 ;;
        buildah) buildah images >/dev/null 2>&1 ;;
        *) return 1 ;;
    esac
}

find_tool() {
    if [[ -n ${CONTAINER_TOOL:-} ]]; then
        case ${CONTAINER_TOOL##*/} in
            docker | podman | buildah) ;;
            *) fail "CONTAINER_TOOL must be docker, podman or buildah. Received: '$CONTAINER_TOOL'" ;;
        esac
        command -v "$CONTAINER_TOOL" >/dev/null ||
            fail "CONTAINER_TOOL must be a program that is installed. Received: '$CONTAINER_TOOL'"
        tool=$CONTAINER_TOOL
        return
    fi
    for tool in docker podman buildah; do
        if command -v "$tool" >/dev/null && works "$tool"; then return; fi
    done
    fail "Images are built by docker, podman or buildah, and one of them must work. Received: none that is" \
        "installed and answers (try 'docker info' or 'podman info'; CONTAINER_TOOL names one)"
}

targets=${TARGETS:-cpu gpu}
targets=${targets//,/ }
for target in $targets; do
    [[ $target == cpu || $target == gpu ]] || fail "TARGETS must be of cpu, gpu. Received: '$target'"
done
commit=$(git rev-parse HEAD 2>/dev/null) || fail "The images are named after the git commit. Received: a folder without one"
tag=${commit:0:12}
if [[ -n $(git status --porcelain) ]]; then
    commit+=-dirty
    tag+=-dirty
fi
find_tool

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
prefix=${REGISTRY:+${REGISTRY%/}/}
arguments=(--file docker/Dockerfile --build-arg "VERSION=$version" --build-arg "REVISION=$commit")
if [[ -n ${BASE_IMAGE:-} ]]; then arguments+=(--build-arg "BASE_IMAGE=$BASE_IMAGE"); fi
if [[ ${tool##*/} == buildah ]]; then arguments+=(--layers); fi
read -r -a flags <<<"${BUILD_FLAGS:-}"

names=()
for target in $targets; do
    name="${prefix}graftflow-python-$target:$tag"
    echo "Building $name with $tool"
    "$tool" build "${arguments[@]}" ${flags[@]+"${flags[@]}"} --build-arg "IMAGE=$name" --target "$target" --tag "$name" .
    names+=("$name")
done
echo
for name in "${names[@]}"; do
    if [[ ${tool##*/} == buildah ]]; then
        size=$(buildah images --format '{{.Size}}' "$name")
    else
        bytes=$("$tool" image inspect --format '{{.Size}}' "$name")
        size=$((bytes / 1000000))" MB"
    fi
    printf '%-60s %s\n' "$name" "$size"
done
