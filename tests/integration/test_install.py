# SPDX-License-Identifier: MIT
"""What `make install` puts under a prefix: programs that run, a library that a program finds by
pkg-config, the unit and the manual pages."""

import glob
import os
import shutil
import subprocess

import pytest

from conftest import BUILD, COVERED, SANITIZED

PROGRAM = r"""
#include <distkv.h>
#include <stdio.h>
#include <string.h>

int
main(int argc, char **argv)
{
    distkv *kv;
    char error[DISTKV_ERROR_BYTES];
    struct distkv_value value;
    if (argc != 2 || distkv_connect(argv[1], NULL, &kv, error) != DISTKV_OK) return 1;
    if (distkv_put(kv, "key", 3, "value", 5, NULL, NULL) != DISTKV_OK) return 2;
    if (distkv_get(kv, "key", 3, &value) != DISTKV_OK) return 3;
    printf("%.*s\n", (int)value.size, (const char *)value.data);
    distkv_value_free(&value);
    distkv_close(kv);
    return 0;
}
"""


def run(*command, **more):
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **more)


@pytest.mark.skipif(bool(SANITIZED), reason="the release build's")
def test_what_is_installed_works(make_server, tmp_path):
    prefix = tmp_path / "prefix"
    done = run("cmake", "--install", BUILD, "--prefix", str(prefix))
    assert done.returncode == 0, done.stderr
    for name in ("sbin/distkv-server", "bin/distkv-client", "bin/distkv-bench", "sbin/distkv-tune"):
        done = run(str(prefix / name), "--help")
        assert done.returncode == 0, (name, done.stderr)
    pages = glob.glob(str(prefix / "share/man/man*/distkv-*"))
    units = glob.glob(str(prefix / "**/distkv.service"), recursive=True)
    assert len(pages) >= 2 and units, (pages, units)

    configs = glob.glob(str(prefix / "lib/**/pkgconfig/distkv.pc"), recursive=True)
    assert len(configs) == 1
    compiler = shutil.which("cc")
    if compiler is None or shutil.which("pkg-config") is None:
        pytest.skip("needs cc and pkg-config")
    environment = dict(os.environ, PKG_CONFIG_PATH=os.path.dirname(configs[0]))
    # The file names the prefix that the build was configured for, whatever that was last.
    flags = run("pkg-config", f"--define-variable=prefix={prefix}", "--cflags", "--libs", "distkv", env=environment)
    assert flags.returncode == 0, flags.stderr
    source = tmp_path / "user.c"
    source.write_text(PROGRAM)
    words = flags.stdout.split()
    library = next(word[2:] for word in words if word.startswith("-L"))
    program = str(tmp_path / "user")
    done = run(compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", str(source), "-o", program, *words)
    assert done.returncode == 0, done.stderr
    server = make_server()
    done = run(program, f"127.0.0.1:{server.port}", env=dict(os.environ, LD_LIBRARY_PATH=library))
    assert (done.returncode, done.stdout) == (0, "value\n"), done.stderr

    # The static library, with what the file says that it needs.
    flags = run("pkg-config", "--define-prefix", "--static", "--cflags", "--libs", "distkv",
                env=environment)
    assert flags.returncode == 0, flags.stderr
    words = [os.path.join(library, "libdistkv.a") if word == "-ldistkv" else word
             for word in flags.stdout.split()] + ["--coverage"] * COVERED
    done = run(compiler, "-std=c11", str(source), "-o", program, *words)
    assert done.returncode == 0, done.stderr
    done = run(program, f"127.0.0.1:{server.port}")
    assert (done.returncode, done.stdout) == (0, "value\n"), done.stderr
