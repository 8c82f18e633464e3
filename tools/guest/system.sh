# Debian 12 systems with programs to measure and to test with, each as a tree and as a disk image. Sourced by tools/asset.
# shellcheck shell=bash

# What each system is called, the size of its disk and the packages that it has beyond Debian's smallest.
system_table() {
    cat <<'END'
bench      2G  gcc libc6-dev 7zip xz-utils zstd sqlite3 python3 luajit sysbench openssl fio rt-tests stress-ng iproute2 libstb-dev
cloud      2G  systemd-sysv udev dbus iproute2 login passwd cloud-init openssh-server
qemu       2G  qemu-system-x86 seabios
workloads  4G  nodejs openjdk-17-jdk-headless libpython3.11-testsuite qemu-user busybox-static
END
}

# system NAME: the directory that holds the file system as 'tree', and as 'image', an ext4 disk to be opened read-only.
system() {
    local size packages key
    read -r _ size packages < <(system_table | awk -v n="${1:-}" '$1 == n')
    [ -n "$packages" ] || die "no system is called '${1:-}'; there are: $(system_table | awk '{ print $1 }' | tr '\n' ' ')"
    papt_update amd64
    key=$(remembered "system-$1" amd64 system_versions "$packages") && [ -n "$key" ] || die "apt does not know the packages of system $1"
    key=$(printf '%s\n' "$key" "$size" "$packages" "$(declare -f make_system debian_tar fill_image)" | sha256sum | cut -c1-12)
    once "$cache/system/$1-$key" make_system "$size" "$packages" || die "could not make the Debian system '$1'"
    echo "$cache/system/$1-$key"
}

# shellcheck disable=SC2086
system_versions() { papt amd64 apt-cache policy base-files libc6 $1 | grep -E '^[a-z0-9]|Candidate'; }

make_system() {
    local size=$1 packages=${2// /,} out=$3
    say "making a Debian system with ${2// /, } (minutes)"
    # Java's packages want to put links where the manual pages would be.
    mkdir "$out" && debian_tar "$out/tar" "$packages" --essential-hook='mkdir -p "$1/usr/share/man/man1"' || return 1
    truncate -s "$size" "$out/image" && fill_image "$out/tar" "$out/image" || return 1
    mkdir "$out/tree" && tar -x -f "$out/tar" -C "$out/tree" --exclude='./dev/*' || return 1
    rm "$out/tar"
}
