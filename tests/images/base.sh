#!/usr/bin/env bash
# Makes a stand-in for python:3.11-slim-bookworm where no registry can be reached: Debian's own Python, by debootstrap.
# Needs root; podman and the rest are installed from Debian where they are missing. Usage: base.sh NAME
set -euo pipefail
name=$1
declare -A packages=([podman]=podman [runc]=runc [debootstrap]=debootstrap)
missing=()
for program in "${!packages[@]}"; do
    command -v "$program" >/dev/null || missing+=("${packages[$program]}")
done
if ((${#missing[@]})); then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >&2
fi
if podman image exists "$name"; then exit; fi
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
# From where apt has bookworm on this machine, or else debootstrap's own choice.
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 2>/dev/null |
    awk '$1 == "bookworm" && !found {print $2; found = 1}')}
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" ${mirror:+"$mirror"} >&2
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar -C "$root" -c . | podman import - "$name" >&2
