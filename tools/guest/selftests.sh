# KVM's own selftests, out of Debian's package of the kernel's source, for the hypervisor guest. Sourced by tools/asset.
# shellcheck shell=bash

# selftests: the path of an archive to follow the hypervisor guest's, with the programs in /selftests and `selftest` to run one.
selftests() {
    local version key
    papt_update amd64
    version=$(remembered selftests amd64 papt_version amd64 linux-source-6.1)
    [ -n "$version" ] || die "apt knows no package linux-source-6.1"
    key=$(cd "$top/tools/guest" && cat selftest selftests.sh | sha256sum | cut -c1-12)
    once "$cache/selftests/$version-$key.cpio" make_selftests || die "could not make KVM's selftests"
    echo "$cache/selftests/$version-$key.cpio"
}

make_selftests() {
    local out=$1 source=$1.source root=$1.root program
    mkdir -p "$source" "$out.built" "$root"/{bin,selftests} && papt_fetch amd64 linux-source-6.1 "$out.deb" || return 1
    say "building KVM's selftests"
    deb_cat "$out.deb" ./usr/src/linux-source-6.1.tar.xz | tar -xJ --strip-components=1 -C "$source" linux-source-6.1/{tools,scripts} || return 1
    build_selftests "$source/tools/testing/selftests/kvm" "$out.built" >"$out.log" 2>&1 || { tail -20 "$out.log" >&2; return 1; }
    for program in $(find "$out.built" -type f -perm -u+x); do
        strip -o "$root/selftests/${program##*/}" "$program" || return 1
    done
    cp "$top/tools/guest/selftest" "$root/bin/" && archive "$root" >"$out"
}

# Against the system's headers of the kernel. Two programs would not build as they are: dirty_log_test uses a macro by the name that
# later versions have for it, and steal_time finds the source tree's linux/stddef.h too late.
build_selftests() {
    make -C "$1" -j "$(nproc)" OUTPUT="$2" ARCH=x86_64 KHDR_INCLUDES= LDFLAGS="-static -pthread -no-pie" LDLIBS= \
        CPPFLAGS="-DTEST_ASSERT_EQ=ASSERT_EQ -include linux/stddef.h"
}
