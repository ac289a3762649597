#!/bin/sh
# Makes the image's root: the program, the libraries it is linked with, certificates of authorities, a user; no shell.
# `deploy/rootfs.sh BINARY DIR`. The Dockerfile runs it, and deploy/check.sh tries the result with chroot.
set -eu
binary=$1
root=$2
mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs" "$root/etc/cabrank" "$root/var/lib/cabrank"
cp "$binary" "$root/usr/local/bin/cabrank"
strip "$root/usr/local/bin/cabrank"
# Names of the linked libraries and of the loader, as they stand on this machine: `=> /lib/...` and `/lib64/ld-...`.
ldd "$binary" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) .*/\1/p' | while read -r library; do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
done
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
echo 'cabrank:x:65532:65532::/:/nonexistent' > "$root/etc/passwd"
echo 'cabrank:x:65532:' > "$root/etc/group"
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
chown 65532:65532 "$root/var/lib/cabrank"
