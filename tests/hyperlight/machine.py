"""Run a command where Hyperlight runs: on this machine, or in an emulated one with its own KVM.

``python -m tests.hyperlight.machine COMMAND...`` runs ``python COMMAND...`` with Hyperlight's
packages on the path. Where the machine's KVM cannot run Hyperlight, QEMU emulates an AMD processor
with its virtualisation (no KVM, no privileges), boots Debian's kernel with an initramfs of a few
megabytes, and sees this machine's interpreter, packages and checkout through read-only 9p mounts.
Times measured there are the emulation's. What the command writes into ``$TARSDB_OUT`` is found
in ``build/hyperlight/out``.

Packages come from the index by pinned digest, the kernel from apt, which checks its signature.
"""

from __future__ import annotations

import compileall
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "hyperlight"
PACKAGES = BUILD / "packages"
COMPILER = BUILD / "wasmtime-36.0.0"
OUT = BUILD / "out"
CACHE = BUILD / "cache"
"""Native code, so that a later run need not compile what did not change."""
SECONDS = 2_400
MEMORY_MIB = 3_072
MODULES = (  # in the order of their needs
    "drivers/virtio/virtio_ring", "drivers/virtio/virtio", "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev", "drivers/virtio/virtio_pci", "fs/netfs/netfs",
    "fs/fscache/fscache", "net/9p/9pnet", "net/9p/9pnet_virtio", "fs/9p/9p",
    "virt/lib/irqbypass", "drivers/crypto/ccp/ccp", "arch/x86/kvm/kvm", "arch/x86/kvm/kvm-amd",
)  # fmt: skip
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t debugfs debug /sys/kernel/debug
mount -t tmpfs tmp /tmp; mkdir -p /dev/shm /usr; mount -t tmpfs shm /dev/shm
for module in {modules}; do insmod /modules/$module.ko; done
mount_host() {{
  mkdir -p "$2"
  mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,$3 "$1" "$2"
}}
{mounts}
ln -s usr/lib /lib; ln -s usr/lib64 /lib64
echo "booted in $(cut -d' ' -f1 /proc/uptime) s, emulated"
sh {script}
echo $? > {status}
sync; poweroff -f
"""


class Missing(Exception):
    """Something this machine needs; the text says how to get it."""


def install() -> None:
    """Put Hyperlight's packages and the compiler into ``build``, once."""
    folder = pathlib.Path(__file__).parent
    for target, names in ((PACKAGES, "packages.txt"), (COMPILER, "compiler.txt")):
        if target.is_dir():
            continue
        print(f"installing {names} into {target}", flush=True)
        part = target.with_suffix(".part")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "--no-deps", "--require-hashes", "--target", str(part), "-r", str(folder / names)],
            check=True,
        )  # fmt: skip
        part.rename(target)


def environment() -> dict[str, str]:
    """Return the variables a command needs to find Hyperlight."""
    return {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{PACKAGES}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TARSDB_HYPERLIGHT_COMPILER": str(COMPILER),
        "TARSDB_OUT": str(OUT),
        "TARSDB_CACHE_DIR": str(CACHE),
    }


def why_not_here() -> str:
    """Return why this machine's KVM does not run Hyperlight, or ``''``; tried in a child."""
    code = "from tarsdb.udf_sandbox.hyperlight import probe; print(probe.unavailable())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment(), check=True,
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    return done.stdout.strip()


def kernel() -> tuple[pathlib.Path, pathlib.Path]:
    """Return (kernel image, folder of its modules), from Debian's package in ``build``."""
    folder = BUILD / "kernel"
    if not folder.is_dir():
        _unpack_kernel(folder)
    images, modules = list(folder.glob("boot/vmlinuz-*")), list(folder.glob("lib/modules/*/kernel"))
    if len(images) != 1 or len(modules) != 1:
        raise Missing(f"{folder} holds no kernel; remove it and try again")
    return images[0], modules[0]


def _unpack_kernel(folder: pathlib.Path) -> None:
    for tool in ("apt-cache", "apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Missing(f"{tool} is needed to fetch Debian's kernel; unpack one into {folder}")
    said = subprocess.run(
        ["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=False
    ).stdout
    names = [word for word in said.split() if word.startswith("linux-image-") and "amd64" in word]
    if len(names) < 2:
        raise Missing("apt knows no linux-image-amd64: run apt-get update")
    print(f"fetching {names[1]}", flush=True)
    subprocess.run(["apt-get", "download", "--quiet", names[1]], cwd=BUILD, check=True)
    part = folder.with_suffix(".part")
    for package in BUILD.glob(f"{names[1]}_*.deb"):
        subprocess.run(["dpkg-deb", "--extract", str(package), str(part)], check=True)
    part.rename(folder)


def mounts() -> list[tuple[pathlib.Path, str]]:
    """Return the folders the emulated machine sees, none inside another, and how."""
    wanted = [pathlib.Path(name) for name in ("/usr/lib", "/usr/lib64") if os.path.isdir(name)]
    wanted += [pathlib.Path(name).resolve() for name in (sys.base_prefix, sys.prefix, ROOT, BUILD)]
    kept = [
        folder for folder in dict.fromkeys(wanted)
        if not any(other != folder and folder.is_relative_to(other) for other in wanted)
    ]  # fmt: skip
    written = [(folder.resolve(), "rw") for folder in (OUT, CACHE)]
    return [(folder, "ro") for folder in kept] + written


def initramfs(modules: pathlib.Path, script: pathlib.Path, status: pathlib.Path) -> pathlib.Path:
    """Write the archive the kernel starts from; return its path."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise Missing("busybox is needed: apt-get install busybox-static")
    lines = [
        f"mount_host m{number} {shlex.quote(str(folder))} {mode}"
        for number, (folder, mode) in enumerate(mounts())
    ]
    names = [name.rpartition("/")[2] for name in MODULES]
    text = INIT.format(
        modules=" ".join(names), mounts="\n".join(lines), script=script, status=status
    )
    files = {f"modules/{name.rpartition('/')[2]}.ko": (modules / f"{name}.ko").read_bytes()
             for name in MODULES}  # fmt: skip
    files["bin/busybox"] = pathlib.Path(busybox).read_bytes()
    files["init"] = text.encode()
    path = BUILD / "initramfs"
    with path.open("wb") as archive:
        for folder in ("bin", "dev", "modules", "proc", "sys", "tmp"):
            archive.write(_entry(folder, 0o40755, b""))
        for name, data in files.items():
            archive.write(_entry(name, 0o100755, data))
        archive.write(_entry("TRAILER!!!", 0, b""))
    return path


def _entry(name: str, mode: int, data: bytes) -> bytes:
    """Return one file in the cpio format "newc"."""
    raw = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + raw
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def emulate(command: list[str]) -> int:
    """Run ``python COMMAND`` in the emulated machine; return its exit status."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise Missing("qemu is needed: apt-get install --no-install-recommends qemu-system-x86")
    image, modules = kernel()
    script, status = OUT / "run.sh", OUT / "status"
    status.unlink(missing_ok=True)
    python = pathlib.Path(sys.prefix).resolve() / "bin" / "python"
    variables = environment() | {"HOME": "/tmp", "TARSDB_EMULATED": "1", "PYTHONUNBUFFERED": "1"}
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    script.write_text(
        f"{exports}\ncd {shlex.quote(str(ROOT))}\n{shlex.join([str(python), *command])}\n"
    )
    archive = initramfs(modules, script, status)
    shares: list[str] = []
    for number, (folder, mode) in enumerate(mounts()):
        only = ",readonly=on" if mode == "ro" else ""
        shares += [
            "-fsdev", f"local,id=f{number},path={folder},security_model=none,multidevs=remap{only}",
            "-device", f"virtio-9p-pci,fsdev=f{number},mount_tag=m{number}",
        ]  # fmt: skip
    boot = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr rdinit=/init tsc=reliable"
    done = subprocess.run(
        [qemu, "-accel", "tcg,thread=single,tb-size=512", "-cpu", "max,+svm,+npt", "-smp", "1",
         "-m", str(MEMORY_MIB), "-kernel", str(image), "-initrd", str(archive), "-append", boot,
         "-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none",
         "-no-reboot", *shares],
        check=False, timeout=SECONDS, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if not status.exists():
        print(f"the emulated machine stopped early (qemu exit {done.returncode})")
        return 1
    return int(status.read_text())


def main(command: list[str]) -> int:
    """Install, choose the machine, run."""
    OUT.mkdir(parents=True, exist_ok=True)
    CACHE.mkdir(mode=0o700, exist_ok=True)
    for folder in ("tarsdb", "tests"):  # an emulated interpreter takes long to compile
        compileall.compile_dir(ROOT / folder, quiet=1)
    try:
        install()
        reason = why_not_here()
        if not reason:
            variables = os.environ | environment()
            return subprocess.run([sys.executable, *command], env=variables, check=False,
                                  cwd=ROOT).returncode  # fmt: skip
        print(f"not on this machine's KVM: {reason}\nemulating one", flush=True)
        return emulate(command)
    except Missing as error:
        print(f"tests of Hyperlight cannot run here: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
