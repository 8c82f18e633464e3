# A private apt: its own lists and its own architecture, with the machine's configured sources.
# Needs no root and leaves the machine's dpkg and apt as they are. Sourced by tools/asset.
# shellcheck shell=bash

# papt ARCH PROGRAM ARG...: runs apt-get or apt-cache as if this were a bare machine of ARCH.
papt() {
    local arch=$1 program=$2 dir=$cache/apt/$1; shift 2
    "$program" -o APT::Architecture="$arch" -o APT::Architectures::="$arch" -o APT::Sandbox::User= \
        -o Dir::State="$dir/state" -o Dir::State::status="$dir/state/status" \
        -o Dir::Cache="$dir/cache" -o Dir::Cache::pkgcache=pkgcache.bin -o Dir::Cache::srcpkgcache= \
        -o Dir::Log="$dir/log" -o Acquire::Languages=none -o Acquire::Retries=3 "$@"
}

# Brings ARCH's package lists up to date, at most once a day. An update that fails in part is
# good enough as long as what we want can be found in the lists.
papt_update() {
    local arch=$1 dir=$cache/apt/$1
    [ -n "$(find "$dir/stamp" -mmin -1440 2>/dev/null)" ] && return 0
    mkdir -p "$dir"/state/lists/partial "$dir"/cache/archives/partial "$dir"/log
    (
        flock 9
        [ -n "$(find "$dir/stamp" -mmin -1440 2>/dev/null)" ] && exit 0
        : >"$dir/state/status"
        say "updating the package lists for $arch guests"
        if papt "$arch" apt-get update -q >"$dir/log/update" 2>&1; then
            touch "$dir/stamp"
        else
            note "not all lists could be updated; going on with what there is"
            touch -d '-23 hours' "$dir/stamp"
        fi
        touch "$dir/updated"
    ) 9>"$dir/lock"
}

# The version of PACKAGE that apt would install.
papt_version() {
    papt "$1" apt-cache policy "$2" 2>/dev/null | sed -n 's/^ *Candidate: //p' | grep -v '(none)'
}

# The kernel package that a meta-package such as linux-image-amd64 stands for.
papt_follow() {
    papt "$1" apt-cache depends --important "$2" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9][^: ]*\).*/\1/p' | head -1
}

# papt_fetch ARCH PACKAGE FILE: downloads a package to FILE.
papt_fetch() {
    local dir
    dir=$(mktemp -d "$(dirname "$3")/.get.XXXXXX") || return 1
    say "downloading $2 ($1)"
    if [ -t 2 ]; then
        (cd "$dir" && papt "$1" apt-get download "$2" >&2)
    else
        (cd "$dir" && papt "$1" apt-get download -q "$2" >/dev/null)
    fi && mv "$dir"/*.deb "$3"
    local status=$?
    rm -rf "$dir"
    return $status
}

# remembered KEY ARCH COMMAND...: COMMAND's output, kept until ARCH's package lists change.
# What was found last time serves when the lists cannot be read now.
remembered() {
    local file=$cache/resolved/$1 lists=$cache/apt/$2/updated value; shift 2
    if [ ! -s "$file" ] || [ "$lists" -nt "$file" ]; then
        mkdir -p "$cache/resolved"
        value=$("$@") && [ -n "$value" ] && printf '%s\n' "$value" >"$file.$$" && mv "$file.$$" "$file"
    fi
    cat "$file" 2>/dev/null
}
