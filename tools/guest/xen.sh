# Xen, and the test guest as its first domain: an initramfs with Xen's tools and QEMU as its device model, and a kernel and an
# initramfs for domains. Sourced by tools/asset.
# shellcheck shell=bash

xen_packages="xen-hypervisor-4.17-amd64,xen-utils-4.17,qemu-system-xen"

# What of those packages the first domain has: programs, whose libraries come along, and files that the programs read.
xen_bin=usr/lib/xen-4.17/bin
xen_programs="$xen_bin/xl $xen_bin/libxl-save-helper $xen_bin/xenstored $xen_bin/xenconsoled $xen_bin/xen-init-dom0
              usr/libexec/xen-qemu-system-i386 lib64/ld-linux-x86-64.so.2"
xen_files="usr/lib/xen-4.17/boot/hvmloader usr/share/seabios/bios-256k.bin usr/share/qemu/linuxboot.bin usr/share/qemu/kvmvapic.bin
           usr/share/qemu/keymaps/en-us etc/xen/xl.conf"
xen_modules="xen-privcmd xen-evtchn xen-gntdev xenfs"

# xen: a directory with 'xen', a Multiboot kernel, and 'dom0', an initramfs for Debian's stock kernel as its first domain.
xen() {
    local dir base key
    dir=$(kernel_dir amd64) || exit 1
    base=$(initramfs amd64) || exit 1
    key=$(remembered xen amd64 xen_versions) && [ -n "$key" ] || die "apt does not know Xen's packages"
    key=$(cd "$top/tools/guest" && printf '%s' "$key" | cat - dom0 domain-*.cfg xen.sh pick-modules.py "$base" | sha256sum | cut -c1-12)
    once "$cache/xen/${dir##*/}-$key" make_xen "$dir" "$base" || die "could not make Xen and its first domain"
    echo "$cache/xen/${dir##*/}-$key"
}

# shellcheck disable=SC2086
xen_versions() { papt amd64 apt-cache policy base-files libc6 ${xen_packages//,/ } | grep -E '^[a-z0-9]|Candidate'; }

# The packages are unpacked once for each version, and not installed: nothing of them runs here.
xen_tree() {
    local key
    key=$(remembered xen amd64 xen_versions | sha256sum | cut -c1-12)
    once "$cache/xen/packages-$key.tar" unpack_xen && echo "$cache/xen/packages-$key.tar"
}

unpack_xen() {
    say "getting Xen's packages"
    debian_tar "$1" "$xen_packages" --variant=extract
}

make_xen() {
    local kernel=$1 base=$2 out=$3 packages=$3.packages root=$3.root tar
    tar=$(xen_tree) || return 1
    say "making Xen's first domain"
    mkdir -p "$out" "$packages" "$root"/{bin,guest,lib/xen,etc/xen} "$out.modules" && tar -x -f "$tar" -C "$packages" --exclude='./dev/*' || return 1
    gunzip -c "$packages/boot/xen-4.17-amd64.gz" >"$out/xen" || return 1
    # shellcheck disable=SC2086
    pick_programs "$packages" "$root" $xen_programs && pick_programs "$packages" "$root" $xen_files || return 1
    dpkg-deb --fsys-tarfile "$kernel/package.deb" | tar -x -C "$out.modules" ./lib/modules &&
        "$top/tools/guest/pick-modules.py" "$out.modules/lib/modules" "$root/lib/xen" $xen_modules || return 1
    cp "$top/tools/guest/dom0" "$root/bin/" && cp "$top"/tools/guest/domain-*.cfg "$root/etc/xen/" && ln -s "/$xen_bin/xl" "$root/bin/xl" &&
        cp "$kernel/vmlinuz" "$root/guest/" && cp "$base" "$root/guest/initramfs" || return 1
    { cat "$base" && archive "$root"; } >"$out/dom0"
}

# pick_programs TREE OUT FILE...: copies files of a Debian system, with all the libraries that they need.
pick_programs() {
    local tree=$1 out=$2 file name; shift 2
    local -a left=("$@")
    while [ ${#left[@]} -gt 0 ]; do
        file=${left[0]} left=("${left[@]:1}")
        [ -e "$out/$file" ] && continue
        mkdir -p "$out/$(dirname "$file")" && cp -L "$tree/$file" "$out/$file" || return 1
        for name in $(readelf -d "$out/$file" 2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\]$/\1/p'); do
            left+=("$(cd "$tree" && ls {usr/,}"lib/x86_64-linux-gnu/$name" 2>/dev/null | head -1)")
        done
    done
}
