# Sourced by the other scripts: a virtual environment in the project folder, made once and kept up to date.
# It needs Python 3.11 or newer with venv; PYTHON names another interpreter.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

prepare_environment() { # prepare_environment [EXTRAS]: installs the project, with extras, into .venv
    local extras=${1:-} python=${PYTHON:-python3}
    local stamp="$project/.venv/installed${extras:+-$extras}"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "$python is older than 3.11: set PYTHON to a newer one, for example PYTHON=python3.12" >&2
        exit 2
    fi
    [ -x "$project/.venv/bin/python" ] || "$python" -m venv "$project/.venv"
    if [ ! -e "$stamp" ] || [ "$project/pyproject.toml" -nt "$stamp" ]; then
        echo "installing into $project/.venv (the first time takes some minutes: torch is large)" >&2
        "$project/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$project${extras:+[$extras]}"
        touch "$stamp"
    fi
    PATH="$project/.venv/bin:$PATH"
}
