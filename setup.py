"""Puts the start-up file (see lm_eval_calib/autoload.py) at the root of wheels and editable installs.

All the rest is in pyproject.toml; setuptools has no declarative way to install a file there.
"""

import base64
import hashlib
import zipfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

PTH = Path(__file__).with_name("lm_eval_calib_autoload.pth")


class BuildWithPth(build_py):
    """A wheel takes what lies in the build folder."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_file(str(PTH), str(Path(self.build_lib, PTH.name)))

    def get_source_files(self):
        return [*super().get_source_files(), PTH.name]


class EditableWithPth(editable_wheel):
    """An editable wheel holds only what setuptools puts in, so the file and its RECORD line are added after."""

    def run(self):
        super().run()
        (wheel,) = Path(self.dist_dir).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        record = next(name for name in members if name.endswith(".dist-info/RECORD"))
        content = PTH.read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        members[record] = f"{PTH.name},sha256={digest},{len(content)}\n".encode() + members[record]
        members[PTH.name] = content
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)


setup(cmdclass={"build_py": BuildWithPth, "editable_wheel": EditableWithPth})
