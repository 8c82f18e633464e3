# Shared by quickstart, check and tools/asset. Source it.
# shellcheck shell=bash

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${DOPPEL_CACHE:-${XDG_CACHE_HOME:-~/.cache}/doppel}

work=$(mktemp -d)       # for the script's run; it goes at its end
trap 'rm -rf "$work"' EXIT

say()  { printf '==> %s\n' "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }
die()  { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# The packages of tools/packages.txt, one a line.
package_list() { sed 's/[[:space:]]*#.*//; /^$/d' "$top/tools/packages.txt"; }

package_installed() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Installs what is missing where that is possible (Debian, root); otherwise says what to run.
need_packages() {
    local missing=() p
    command -v dpkg-query >/dev/null ||
        die "this script installs packages with apt; on another system install the equivalents of tools/packages.txt and build with meson"
    for p in $(package_list); do
        package_installed "$p" || missing+=("$p")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" != 0 ]; then
        say "missing packages: ${missing[*]}"
        note "run this as root, then start again:"
        note "apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
        exit 1
    fi
    say "installing packages: ${missing[*]}"
    install_packages "${missing[@]}" ||
        { note "no luck with the package lists at hand; updating them"
          apt-get update >&2 && install_packages "${missing[@]}"; } ||
        die "apt could not install: ${missing[*]}"
}

install_packages() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" </dev/null >&2
}

# build DIR [MESON-OPTION...]: configures DIR once, with VNC, then builds it, or what build_targets names of it. On a terminal
# ninja shows how far it is.
build() {
    local dir=$1 quiet=; shift
    if ! grep -qs '^vnc = ' "$top/$dir/meson-private/cmd_line.txt"; then
        say "configuring $dir"
        [ -f "$top/$dir/build.ninja" ] && set -- "$@" --reconfigure
        meson setup "$top/$dir" "$top" -Dvnc=enabled "$@" >"$work/meson" 2>&1 ||
            { tail -20 "$work/meson" >&2; die "meson could not configure $dir"; }
    fi
    say "building $dir"
    [ -t 2 ] || quiet=--quiet
    ninja -C "$top/$dir" $quiet ${build_targets:-} >&2 || die "the build failed"
}

# publish STAGED FINAL: puts a finished file or directory in place in one step. Where another
# run was faster, its result stays and ours goes.
publish() {
    mkdir -p "$(dirname "$2")"
    if [ -d "$1" ]; then
        mv -T "$1" "$2" 2>/dev/null || { rm -rf "$1"; [ -d "$2" ]; }
    else
        mv -T "$1" "$2"
    fi
}

# once FINAL COMMAND...: runs COMMAND with a fresh staging path as its last argument, unless FINAL
# exists already, and publishes what it made there. Concurrent runs wait for each other.
once() {
    local final=$1 stage lock; shift
    [ -e "$final" ] && return 0
    mkdir -p "$cache/lock" "$(dirname "$final")"
    lock=$cache/lock/$(printf %s "${final#"$cache"/}" | tr / _)
    (
        flock 9
        [ -e "$final" ] && exit 0
        stage=$(mktemp -d "$(dirname "$final")/.new.XXXXXX") || exit 1
        trap 'rm -rf "$stage"' EXIT
        "$@" "$stage/it" && publish "$stage/it" "$final"
    ) 9>"$lock"
}
