"Installs docvlm from settings.ini: one list of pinned dependencies for pip, conda and CI."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=settings["author"],
    url=settings["git_url"],
    packages=find_packages(include=["docvlm", "docvlm.*"]),
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={"dev": settings["dev_requirements"].split()},
    entry_points={"console_scripts": settings["console_scripts"].split(),
                  "nbdev": [f"docvlm={settings['lib_path']}._modidx:d"]},
)
