# Shared by the scripts beside it: sourced, from the root of the repository, with `set -euo pipefail`.
# shellcheck shell=bash

VENV="$(realpath -m -- "${VSDIQP_VENV:-$PWD/.venv}")"

say() { printf '%s\n' "== $*" >&2; }

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Prints the first Python >= 3.12 that can make virtual environments: $PYTHON, PATH, then what pyenv has installed.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.13 python3.14 python3 python \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3; do
        # Shims of pyenv exist for versions that are not switched on, so each candidate has to prove itself.
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "No Python >= 3.12 with venv was found on PATH or in pyenv; VapourSynth needs one. For example:" \
        "    pyenv install 3.12            or    apt-get install python3.12 python3.12-venv" \
        "Another one is named by PYTHON=/path/to/python3 ${0##*/}"
}

# Arguments program=package: gets what is not there from the system's package manager when root, else says how.
need_programs() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        say "installing ${missing[*]}"
        apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
    elif command -v apt-get >/dev/null; then
        die "Programs are missing. Install them with:" "    sudo apt-get install ${missing[*]}"
    else
        die "Programs are missing; Debian's packages with them are called: ${missing[*]}"
    fi
}

# Argument: extras. Makes the virtual environment, installs this tree into it as users do, puts it first on PATH.
# Does nothing the second time, until the package or the extras change.
install_package() {
    local python wanted="$1" state quiet=()
    if ! [ -x "$VENV/bin/python" ]; then
        python="$(find_python)"
        say "virtual environment of $("$python" --version) in $VENV"
        "$python" -m venv "$VENV"
    fi
    export PATH="$VENV/bin:$PATH"
    unset PYTHONPATH PYTHONHOME VAPOURSYNTH_EXTRA_PLUGIN_PATH
    state="$wanted $(find vsdiqp setup.py pyproject.toml -type f ! -name '*.pyc' | LC_ALL=C sort | xargs cksum | cksum)"
    if [ "$(cat "$VENV/installed" 2>/dev/null)" != "$state" ]; then
        say "installing vsdiqp[$wanted] (the first time this downloads torch: minutes)"
        rm -rf build/lib* build/bdist*  # or files that are gone from the tree would be packed again
        [ -t 2 ] || quiet=(-qq)  # pip's progress is for people; errors are shown in any case
        python -m pip install ${quiet[@]+"${quiet[@]}"} --disable-pip-version-check ".[$wanted]" >&2
        printf '%s' "$state" >"$VENV/installed"
    fi
    # vspipe finds VapourSynth through the user's configuration, which is left as it is: this one lies apart.
    export XDG_CONFIG_HOME="$VENV/config"
    [ -d "$XDG_CONFIG_HOME" ] || vapoursynth config >/dev/null
}
