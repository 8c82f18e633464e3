# Debian 12 installed on a disk: partitions, kernel, and GRUB for BIOS and for UEFI, in a raw image. Sourced by tools/asset.
#
# Nothing of it takes root or a loop device: the root file system is made as for tools/asset rootfs, and GRUB's core images
# are put where its own installer puts them. Log in as root with the password doppel.
# shellcheck shell=bash

disk_boot_modules="virtio_pci virtio_blk ahci sd_mod sr_mod nvme xhci_pci usb_storage ext4"
disk_root_mib=1900
disk_esp_mib=64

# Which kernels are on the disk of that name, beside the packages that every one has.
disk_packages() {
    local common="initramfs-tools,zstd,$rootfs_packages,pciutils"
    case $1 in
    amd64) echo "linux-image-amd64,$common" ;;
    i386)  echo "linux-image-686-pae,linux-image-686,$common" ;;
    xen)   echo "linux-image-amd64,xen-hypervisor-4.17-amd64,xen-utils-4.17,$common" ;;
    *)     return 1 ;;
    esac
}

disk_arch() { case $1 in i386) echo i386 ;; *) echo amd64 ;; esac; }

# disk [amd64|i386|xen]
disk() {
    local key name=${1:-amd64} arch
    disk_packages "$name" >/dev/null || die "there is no disk '$name'; there are amd64, i386 and xen"
    arch=$(disk_arch "$name")
    papt_update "$arch"
    key=$(remembered "disk-$name" "$arch" disk_versions "$name") && [ -n "$key" ] ||
        die "apt does not know the packages of a Debian 12 system"
    key=$(printf '%s' "$key" | cat - "$top"/tools/guest/{rootfs,disk}.sh | sha256sum | cut -c1-12)
    once "$cache/disk/debian12-$name-$key.img" make_disk "$name" || die "could not make the disk with Debian on it"
    echo "$cache/disk/debian12-$name-$key.img"
}

disk_versions() {
    local -a packages
    mapfile -t packages < <(disk_packages "$1" | tr , '\n')
    papt "$(disk_arch "$1")" apt-cache policy base-files libc6 "${packages[@]}" | grep -E '^[a-z]|Candidate'
}

# What neither the tests nor a first look at the system need.
disk_excludes() {
    local path
    for path in '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*' '/lib/modules/*/kernel/sound/*' \
        '/lib/modules/*/kernel/drivers/'{gpu/drm/amd,gpu/drm/i915,gpu/drm/nouveau,gpu/drm/radeon,media,infiniband,staging,net/wireless,isdn}'/*'; do
        printf -- '--dpkgopt=path-exclude=%s\n' "$path"
    done
}

make_disk() {
    local name=$1 out=$2 stage mode masked="systemd-networkd-wait-online.service e2scrub_reap.service"
    local -a excludes
    stage=$(dirname "$out")
    case $(id -u) in 0) mode=root ;; *) mode=unshare ;; esac
    say "making a disk with Debian and GRUB on it (mmdebstrap, two minutes or so)"
    # Not every mirror has i386 in all its parts: the release itself does.
    rootfs_sources | if [ "$name" = i386 ]; then grep ' bookworm main'; else cat; fi >"$stage/sources.list"
    grep -q . "$stage/sources.list" || die "the package sources name no Debian 12"
    chmod 755 "$stage"
    mapfile -t excludes < <(disk_excludes)
    [ "$name" = xen ] && masked+=" xendomains.service"
    { disk_menu_head; disk_menu "$name"; } >"$stage/grub.cfg"
    disk_dom0_init >"$stage/dom0"
    mmdebstrap --mode="$mode" --variant=minbase --quiet --include="$(disk_packages "$name")" --architectures="$(disk_arch "$name")" \
        --aptopt='Acquire::Languages "none"' "${excludes[@]}" \
        --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"; echo MODULES=list >"$1/etc/initramfs-tools/conf.d/doppel"' \
        --essential-hook="printf '%s\\n' $disk_boot_modules >\"\$1/etc/initramfs-tools/modules\"" \
        --customize-hook='echo root:doppel | chroot "$1" chpasswd' \
        --customize-hook='echo doppel-disk >"$1/etc/hostname"' \
        --customize-hook='printf "LABEL=doppel / ext4 defaults 0 1\n" >"$1/etc/fstab"' \
        --customize-hook='printf "[Match]\nType=ether\n[Network]\nDHCP=ipv4\n" >"$1/etc/systemd/network/10-dhcp.network"' \
        --customize-hook='chroot "$1" systemctl -q enable systemd-networkd' \
        --customize-hook='chroot "$1" systemctl -q mask '"$masked" \
        --customize-hook='for console in ttyS0 hvc0; do unit=$1/etc/systemd/system/dev-$console.device.d; mkdir "$unit"; \
            printf "[Unit]\nJobRunningTimeoutSec=infinity\n" >"$unit/patience.conf"; done' \
        --customize-hook='mkdir -p "$1/boot/grub"; cd "$1"; for k in boot/vmlinuz-*; do n=${k##*[0-9]-}; \
            ln -sf "$k" "vmlinuz-$n"; ln -sf "boot/initrd.img-${k#boot/vmlinuz-}" "initrd-$n"; done' \
        --customize-hook="copy-in $stage/dom0 /usr/local/sbin" --customize-hook='chmod 755 "$1/usr/local/sbin/dom0"' \
        --customize-hook="copy-in $stage/grub.cfg /usr/lib/grub/i386-pc /usr/lib/grub/x86_64-efi /boot/grub" \
        bookworm "$stage/root.tar" "$stage/sources.list" >&2 || return 1
    disk_partition "$out" && disk_boot_code "$out" "$stage" && disk_esp "$out" "$stage" && disk_root "$out" "$stage"
}

# The menu is seen on the serial line, and on the screen where there is one. UEFI's console is on both.
disk_menu_head() {
    cat <<'END'
if [ $grub_platform = pc ]; then
    serial --unit=0 --speed=115200
    terminal_input serial console
    terminal_output serial console
fi
insmod all_video
set timeout=5
END
}

# disk_entry KEY TITLE KERNEL ARGUMENTS
disk_entry() {
    printf "menuentry '%s' --hotkey=%s {\n    linux /vmlinuz-%s root=LABEL=doppel %s\n    initrd /initrd-%s\n}\n" "$2" "$1" "$3" "$4" "$3"
}

# disk_xen_entry KEY TITLE ARGUMENTS
disk_xen_entry() {
    printf "menuentry '%s' --hotkey=%s {\n    multiboot2 /boot/xen-4.17-amd64.gz com1=115200,8n1 console=com1 dom0_mem=400M,max:400M\n" "$2" "$1"
    printf '    module2 /vmlinuz-amd64 root=LABEL=doppel console=hvc0 %s\n    module2 /initrd-amd64\n}\n' "$3"
}

# What a first process of domain 0 does that wants no more than to ask Xen. Nothing on the other disks calls it.
disk_dom0_init() {
    cat <<'END'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run; mount -o remount,rw /
mkdir -p /run/xen /run/xenstored
for module in xen-privcmd xen-evtchn xen-gntdev xenfs; do modprobe -q $module; done
mount -t xenfs xenfs /proc/xen
/usr/lib/xen-4.17/bin/xenstored && /usr/lib/xen-4.17/bin/xen-init-dom0
setsid -c sh -i
poweroff -f
END
}

# A hotkey for each entry: the tests press it.
disk_menu() {
    local name=$1 serial='console=tty0 console=ttyS0'
    case $name in
    i386)
        disk_entry d 'Debian' pae "$serial"
        disk_entry n 'Debian without PAE' 686 "$serial" ;;
    xen)
        disk_xen_entry d 'Debian on Xen' ''
        disk_xen_entry x 'Debian on Xen: the tools only' init=/usr/local/sbin/dom0 ;;
    *)
        disk_entry d 'Debian' amd64 "$serial"
        disk_entry s 'Debian, quiet, with the screen as its console' amd64 'console=ttyS0 console=tty0 quiet' ;;
    esac
}

disk_partition() {
    truncate -s $((1 + disk_esp_mib + disk_root_mib + 1))M "$1" &&
        printf '%s\n' "label: dos" "start=1MiB, size=${disk_esp_mib}MiB, type=ef" \
            "start=$((1 + disk_esp_mib))MiB, size=${disk_root_mib}MiB, type=83, bootable" | sfdisk -q "$1" >&2
}

# boot.img in the master boot record, the core image in the gap after it: boot.img looks for it at sector 1 by default.
disk_boot_code() {
    local out=$1 stage=$2
    grub-mkimage -O i386-pc -o "$stage/core.img" -p '(hd0,msdos2)/boot/grub' biosdisk part_msdos ext2 &&
        dd if=/usr/lib/grub/i386-pc/boot.img of="$out" bs=440 count=1 conv=notrunc status=none &&
        dd if="$stage/core.img" of="$out" bs=512 seek=1 conv=notrunc status=none
}

# The EFI system partition: GRUB under the name that firmware starts when it knows no other.
disk_esp() {
    local out=$1 stage=$2 fat=$2/esp.img
    printf 'search --label --set=root doppel\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n' >"$stage/early.cfg"
    grub-mkimage -O x86_64-efi -o "$stage/bootx64.efi" -c "$stage/early.cfg" -p /boot/grub \
        part_msdos part_gpt fat ext2 search search_label configfile normal linux serial terminal echo &&
        truncate -s "${disk_esp_mib}M" "$fat" && mformat -i "$fat" -F -v ESP :: &&
        mmd -i "$fat" ::/EFI ::/EFI/BOOT && mcopy -i "$fat" "$stage/bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI &&
        dd if="$fat" of="$out" bs=1M seek=1 conv=notrunc,sparse status=none
}

disk_root() {
    local out=$1 stage=$2 root=$2/root.img
    truncate -s "${disk_root_mib}M" "$root" && fill_image "$stage/root.tar" "$root" &&
        dd if="$root" of="$out" bs=1M seek=$((1 + disk_esp_mib)) conv=notrunc,sparse status=none
}
