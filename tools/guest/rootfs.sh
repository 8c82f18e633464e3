# A Debian 12 root file system on a raw disk image. Sourced by tools/asset.
#
# It brings no kernel and no modules: the test guest's initramfs loads those and hands over to it
# (root=/dev/vda). Log in as root with the password doppel; the network comes up by DHCP.
# shellcheck shell=bash

rootfs_packages="systemd-sysv,udev,dbus,iproute2,procps,login,passwd"
rootfs_size=1G

rootfs() {
    local key
    papt_update amd64
    key=$(remembered rootfs amd64 rootfs_versions) && [ -n "$key" ] || die "apt does not know the packages of a Debian 12 system"
    key=$(printf '%s' "$key" | cat - "$top/tools/guest/rootfs.sh" | sha256sum | cut -c1-12)
    once "$cache/rootfs/debian12-$key.img" make_rootfs || die "could not make the Debian root file system"
    echo "$cache/rootfs/debian12-$key.img"
}

# What the image's contents follow from: the versions of its weightier packages.
rootfs_versions() { papt amd64 apt-cache policy base-files systemd libc6 dbus iproute2 bash | grep -E '^[a-z]|Candidate'; }

make_rootfs() {
    local out=$1 stage
    stage=$(dirname "$out")
    say "making a Debian root file system (mmdebstrap, a minute or so)"
    debian_tar "$stage/root.tar" "$rootfs_packages" \
        --customize-hook='echo root:doppel | chroot "$1" chpasswd' \
        --customize-hook='echo doppel-guest >"$1/etc/hostname"' \
        --customize-hook='printf "[Match]\nType=ether\n[Network]\nDHCP=ipv4\n" >"$1/etc/systemd/network/10-dhcp.network"' \
        --customize-hook='chroot "$1" systemctl -q enable systemd-networkd' \
        --customize-hook='chroot "$1" systemctl -q mask systemd-networkd-wait-online.service e2scrub_reap.service' || return 1
    truncate -s "$rootfs_size" "$out" && fill_image "$stage/root.tar" "$out" || return 1
}

# debian_tar TAR PACKAGES HOOK...: Debian 12's smallest system with the packages (commas between them) as a tar archive.
debian_tar() {
    local out=$1 packages=$2 stage mode; shift 2
    stage=$(dirname "$out")
    case $(id -u) in 0) mode=root ;; *) mode=unshare ;; esac
    rootfs_sources >"$stage/sources.list"
    grep -q . "$stage/sources.list" || die "the package sources name no Debian 12"
    chmod 755 "$stage"
    mmdebstrap --mode="$mode" --variant=minbase --quiet --include="$packages" --format=tar \
        --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' "$@" \
        bookworm "$out" "$stage/sources.list" >&2
    local status=$?
    rm "$stage/sources.list"
    return $status
}

# The machine's Debian 12 sources, one line each.
rootfs_sources() {
    local keys=/usr/share/keyrings/debian-archive-keyring.gpg options=
    [ -f "$keys" ] && options="[signed-by=$keys] "
    apt-get indextargets --format 'deb '"$options"'$(REPO_URI) $(RELEASE) $(COMPONENT)' \
        'Created-By: Packages' 'Origin: Debian' | grep ' bookworm' | sort -u
}

# fill_image TAR IMAGE: makes an ext4 file system with the tar's contents. Files keep their owners,
# which takes root or a user namespace that has more than one user.
fill_image() {
    local script='set -e; dir=$(mktemp -d); trap "rm -rf $dir" EXIT; tar -x -f - -C "$dir" --numeric-owner --exclude="./dev/*"
        mke2fs -q -F -t ext4 -L doppel -E root_owner=0:0,lazy_itable_init=0 -d "$dir" "$0"'
    if [ "$(id -u)" = 0 ]; then
        sh -c "$script" "$2" <"$1"
    else
        chmod 666 "$2" && mmdebstrap --unshare-helper sh -c "$script" "$2" <"$1" && chmod 644 "$2"
    fi
}
