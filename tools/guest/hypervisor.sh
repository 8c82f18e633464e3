# The test guest as a hypervisor: the cloud kernel's initramfs with KVM's modules, a user of KVM, and a guest for it, which is the
# same kernel and initramfs; in both a program that measures. Sourced by tools/asset.
# shellcheck shell=bash

# hypervisor: the path of that initramfs; its kernel is the cloud kernel.
hypervisor() {
    local dir base key
    dir=$(kernel_dir cloud) || exit 1
    base=$(initramfs cloud) || exit 1
    key=$(cd "$top/tools/guest" && cat kvm_linux.c speed.c hypervisor.sh pick-modules.py "$base" | sha256sum | cut -c1-12)
    once "$cache/hypervisor/${dir##*/}-$key.cpio" make_hypervisor "$dir" "$base" || die "could not make the hypervisor guest"
    echo "$cache/hypervisor/${dir##*/}-$key.cpio"
}

# Linux unpacks initramfs archives that follow one another.
make_hypervisor() {
    local kernel=$1 base=$2 out=$3 root=$3.root
    say "making the hypervisor guest of ${kernel##*/}"
    mkdir -p "$root"/{bin,guest} "$out.modules" "$out.more/bin" || return 1
    gcc -O2 -Wall -static -pthread -o "$root/bin/kvm_linux" "$top/tools/guest/kvm_linux.c" || return 1
    dpkg-deb --fsys-tarfile "$kernel/package.deb" | tar -x -C "$out.modules" ./lib/modules &&
        "$top/tools/guest/pick-modules.py" "$out.modules/lib/modules" "$root/lib/kvm" kvm_intel &&
        "$top/tools/guest/pick-modules.py" "$out.modules/lib/modules" "$root/lib/kvm-amd" kvm_amd || return 1
    gcc -O2 -Wall -static -o "$out.more/bin/speed" "$top/tools/guest/speed.c" && cp "$out.more/bin/speed" "$root/bin/" || return 1
    cp "$kernel/vmlinuz" "$root/guest/" && { cat "$base" && archive "$out.more"; } >"$root/guest/initramfs" || return 1
    { cat "$base" && archive "$root"; } >"$out"
}

archive() { (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 --reproducible); }
