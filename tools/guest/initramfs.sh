# The test and demo guest: busybox, a few modules and the script 'init'. Sourced by tools/asset.
# shellcheck shell=bash

# initramfs KERNEL: the path of an initramfs that fits the kernel.
initramfs() {
    local name=$1 dir arch box key
    arch=$(kernel_arch "$name")
    dir=$(kernel_dir "$name") || exit 1
    box=$(busybox_for "$arch") || exit 1
    key=$(cd "$top/tools/guest" && cat init fidelity udhcpc.script modules.txt modules-more.txt initramfs.sh pick-modules.py "$box" | sha256sum | cut -c1-12)
    once "$cache/initramfs/${dir##*/}-$key.cpio" make_initramfs "$dir" "$box" || die "could not make the initramfs for kernel '$name'"
    echo "$cache/initramfs/${dir##*/}-$key.cpio"
}

# A statically linked busybox for the architecture: the machine's own where it has one.
busybox_for() {
    local version
    if [ "$1" = amd64 ] && package_installed busybox-static; then
        dpkg -L busybox-static | grep -x '.*/bin/busybox' | head -1
        return
    fi
    papt_update "$1"
    version=$(remembered "busybox-$1" "$1" papt_version "$1" busybox-static)
    [ -n "$version" ] || die "apt knows no package busybox-static for $1"
    once "$cache/busybox/$1-$version" unpack_busybox "$1" || die "could not get busybox for $1"
    echo "$cache/busybox/$1-$version"
}

unpack_busybox() {
    papt_fetch "$1" busybox-static "$2.deb" && deb_cat "$2.deb" ./bin/busybox >"$2" && chmod +x "$2"
    rm -f "$2.deb"
}

make_initramfs() {
    local kernel=$1 box=$2 out=$3 root=$3.root applet
    say "making an initramfs for ${kernel##*/}"
    mkdir -p "$root"/{bin,dev,etc,proc,sys,tmp,root,mnt,lib/modules} || return 1
    cp "$box" "$root/bin/busybox" && cp "$top/tools/guest/init" "$root/init" &&
        cp "$top/tools/guest/fidelity" "$root/etc/fidelity" &&
        cp "$top/tools/guest/udhcpc.script" "$root/etc/" || return 1
    for applet in $(busybox_applets "$box"); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    if [ -f "$kernel/package.deb" ]; then
        mkdir "$out.modules"
        dpkg-deb --fsys-tarfile "$kernel/package.deb" | tar -x -C "$out.modules" ./lib/modules &&
            "$top/tools/guest/pick-modules.py" "$out.modules/lib/modules" "$root/lib/modules" \
                $(sed 's/#.*//' "$top/tools/guest/modules.txt") &&
            "$top/tools/guest/pick-modules.py" "$out.modules/lib/modules" "$root/lib/modules/more" \
                $(sed 's/#.*//' "$top/tools/guest/modules-more.txt") || return 1
    fi
    (cd "$root" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 --reproducible) >"$out"
}

# An i386 busybox may not run here; its applets are those of the machine's own.
busybox_applets() { "$1" --list 2>/dev/null || command busybox --list; }
