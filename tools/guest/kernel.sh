# Kernels for guests, out of Debian's packages. Sourced by tools/asset.
# shellcheck shell=bash

# What each kernel is called here, its architecture and its package.
kernel_table() {
    cat <<'END'
cloud    amd64  linux-image-cloud-amd64
amd64    amd64  linux-image-amd64
686-pae  i386   linux-image-686-pae
686      i386   linux-image-686
di       amd64  debian-installer-12-netboot-i386
di-amd64 amd64  debian-installer-12-netboot-amd64
END
}

kernel_names() { kernel_table | awk '{ print $1 }'; }
kernel_arch()  { if [ "$1" = di ]; then echo i386; else apt_arch "$1"; fi; }
apt_arch()     { kernel_table | awk -v k="$1" '$1 == k { print $2 }'; }
meta_package() { kernel_table | awk -v k="$1" '$1 == k { print $3 }'; }

# The directory that holds kernel NAME: vmlinuz, and package.deb with its modules (or, for the
# installer's kernels, initrd.gz).
kernel_dir() {
    local name=$1 arch package version
    arch=$(apt_arch "$name")
    [ -n "$arch" ] || die "no kernel is called '$name'; there are: $(kernel_names | tr '\n' ' ')"
    papt_update "$arch"
    read -r package version < <(remembered "kernel-$name" "$arch" kernel_resolve "$arch" "$(meta_package "$name")")
    [ -n "$version" ] || die "apt knows no package $(meta_package "$name") for $arch; do the package sources name Debian 12, and is the network up?"
    once "$cache/kernel/${package}_$version" kernel_unpack "$arch" "$package" || die "could not get kernel '$name'"
    echo "$cache/kernel/${package}_$version"
}

# Prints "package version" for a meta-package, which some kernels' packages are.
kernel_resolve() {
    local package version
    package=$(papt_follow "$1" "$2")
    package=${package:-$2}
    version=$(papt_version "$1" "$package") && echo "$package $version"
}

kernel_unpack() {
    local arch=$1 package=$2 out=$3
    mkdir "$out" && papt_fetch "$arch" "$package" "$out/package.deb" || return 1
    say "unpacking $package"
    case $package in
    linux-image-*)
        deb_cat "$out/package.deb" "./boot/vmlinuz-${package#linux-image-}" >"$out/vmlinuz"
        ;;
    *)
        local built=${package##*-} dir
        dir=./usr/lib/debian-installer/images/12/$built/text/debian-installer/$built
        deb_cat "$out/package.deb" "$dir/linux" >"$out/vmlinuz" &&
            deb_cat "$out/package.deb" "$dir/initrd.gz" >"$out/initrd.gz" &&
            rm "$out/package.deb"
        ;;
    esac
    [ -s "$out/vmlinuz" ]
}

# deb_cat FILE.deb MEMBER: one file of a package. (tar reads to the end, so that dpkg-deb does not complain.)
deb_cat() { dpkg-deb --fsys-tarfile "$1" | tar -xO "$2"; }
