#!/bin/sh
# Makes the image's root: the program, the libraries it is linked with, certificates of authorities, their notices, a user;
# no shell. `deploy/rootfs.sh BINARY DIR`. The Dockerfile runs it, and deploy/check.sh tries the result with chroot.
set -eu
binary=$1
root=$2
mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs" "$root/etc/cabrank" "$root/var/lib/cabrank"
cp "$binary" "$root/usr/local/bin/cabrank"
strip "$root/usr/local/bin/cabrank"
# Debian's notice of what is taken from it, and the licences that it names.
notice_of() {
  command -v dpkg >/dev/null || return 0
  package=$({ dpkg -S "$1" || dpkg -S "/usr$1"; } 2>/dev/null | sed -n '1s/[:,].*//p')
  mkdir -p "$root/usr/share/doc/$package" "$root/usr/share/common-licenses"
  cp "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/copyright"
  grep -oh '/usr/share/common-licenses/[A-Za-z0-9.-]*[A-Za-z0-9]' "/usr/share/doc/$package/copyright" | sort -u | while read -r licence; do
    cp -L "$licence" "$root$licence"
  done
}
# Names of the linked libraries and of the loader, as they stand on this machine: `=> /lib/...` and `/lib64/ld-...`.
ldd "$binary" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) .*/\1/p' | while read -r library; do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
  notice_of "$library"
done
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
notice_of /usr/sbin/update-ca-certificates
echo 'cabrank:x:65532:65532::/:/nonexistent' > "$root/etc/passwd"
echo 'cabrank:x:65532:' > "$root/etc/group"
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
chown 65532:65532 "$root/var/lib/cabrank"
