"""The workflows: judged by tools, and their jobs run as the files write them, with stand-ins for
what is outside. Builds need an engine and are delivered by the test.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from release import handover, state
from release.attempts import code_digest
from release.attest import TARBALL_LABEL, provenance_name, sbom_name
from release.components import NAMES as COMPONENTS
from release.handover import Delivery
from release.http import bytes_digest
from release.layout import Layout
from release.plan import SUMS
from release.reference import Digest, Platform, architecture, parse_digest
from release.registry import OCI_INDEX, OCI_MANIFEST
from release.report import Status
from release.state import MOST_ATTEMPTS, Inputs
from release.world import native_platform
from tests.lab.actions import Context, Ended, Run, Unknown, evaluate, resolve
from tests.lab.module_images import AMD64, ARM64, built
from tests.lab.server import Response
from tests.test_cli import DAY, PROJECT, QEMU, Desk, desk, engine

__all__ = ["desk", "engine"]

WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
SYNC = PROJECT / ".github" / "workflows" / "sync.yml"
TOOLS = Path(sys.executable).parent
LEFT_OUT = frozenset({"Install", "Prepare Docker"})
SLUG = "linuxkit-kernel-5.4.39"
ZFS = "2.1.16"
TARBALL = parse_digest("sha256:" + "2" * 64)
OTHER_TARBALL = parse_digest("sha256:" + "3" * 64)
TOKEN = "a-token-of-one-job"
WEEKLY = "41 3 * * 1"


def text_of(workflow: Path) -> dict[Any, Any]:
    return dict(yaml.safe_load(workflow.read_text()))


# What tools say


def judged(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TOOLS / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


BAD = """
on: pull_request_target
jobs:
  test:
    runs-on: ubuntu-24.04
    steps:
      - uses: actions/checkout@v4
      - run: echo ${{ github.event.pull_request.title }}
"""


@pytest.mark.parametrize(
    "judge",
    [
        ("zizmor", "--offline", "--no-progress", "--persona=pedantic"),
        ("check-jsonschema", "--builtin-schema", "vendor.github-workflows"),
    ],
    ids=["zizmor", "schema"],
)
def test_the_workflows_are_as_they_should_be(judge: tuple[str, ...], tmp_path: Path) -> None:
    done = judged(*judge, *map(str, WORKFLOWS))
    assert done.returncode == 0, done.stdout + done.stderr
    bad = tmp_path / ".github" / "workflows" / "bad.yml"
    bad.parent.mkdir(parents=True)
    bad.write_text(BAD.replace("jobs:", "job:") if "schema" in judge[0] else BAD)
    assert judged(*judge, str(bad)).returncode != 0


def test_actions_are_pinned_the_same_everywhere() -> None:
    pins: dict[str, set[str]] = {}
    for workflow in WORKFLOWS:
        for line in re.findall(r"uses: (.*)", workflow.read_text()):
            match = re.fullmatch(r"(actions/[\w-]+)@([0-9a-f]{40} # v\d+\.\d+\.\d+)", line)
            assert match, line
            pins.setdefault(match[1], set()).add(match[2])
    assert {name for name, found in pins.items() if len(found) > 1} == set()


def test_who_may_do_what() -> None:
    allowed = {}
    for workflow in WORKFLOWS:
        content = text_of(workflow)
        assert content["permissions"] == {}
        # YAML 1.1 takes the key for a truth value.
        assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(content[True])
        for name, job in content["jobs"].items():
            allowed[name] = job["permissions"]
            assert job["timeout-minutes"] <= 180
            assert ("secrets." in str(job)) == (name in ("plan", "publish"))
    assert allowed == {
        "test": {"contents": "read"},
        "plan": {"attestations": "read", "contents": "read"},
        "build": {"attestations": "read", "contents": "read"},
        "publish": {"attestations": "write", "contents": "write", "id-token": "write"},
        "report": {"contents": "read", "issues": "write"},
    }


# The lab's own evaluator


def test_expressions() -> None:
    contexts = {
        "vars": {},
        "github": Context(ref="main"),
        "status": {"cancelled": False},
        "matrix": Context(n=3),
    }
    for text, value in {
        "'it''s'": "it's",
        "vars.NONE == ''": True,
        "!cancelled() && (github.ref == 'main' || false)": True,
        "vars.NONE || 20": 20,
        "matrix.n": 3,
        "fromJSON('[1]')": [1],
    }.items():
        assert evaluate(text, contexts) == value
    assert resolve("a ${{ matrix.n }}-${{ vars.NONE }}", contexts) == "a 3-"
    for text in ("github.reff", "env.X", "hashFiles('a')", "matrix.n == 'a'", "1 +", "(1", "1 2"):
        with pytest.raises(Unknown):
            evaluate(text, contexts)


# Runs


class Shop:
    """A maintainer's repository on GitHub: its clone, its runs, and the world of a desk.

    The source has one kernel, for both platforms, which a maintainer wrote down by hand.
    """

    def __init__(self, desk: Desk, directory: Path) -> None:
        self.desk = desk
        self.directory = directory
        self.origin = directory / "origin.git"
        self.runs = 0
        self.secrets = {"DOCKERHUB_USERNAME": "me", "DOCKERHUB_TOKEN": "secret"}
        self.variables: dict[str, str] = {"INSTALL_ZFS_STOP": ""}
        self.python = directory / "python"
        self.python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        self.python.chmod(0o755)
        desk.github.add_token(TOKEN, push=["me/install-zfs"], installation=True)
        self.kernels = self._upstream()
        host = desk.registry.host
        self.image = f"{host}/linuxkit/kernel:5.4.39"
        self.builder = f"{host}/linuxkit/alpine:1"
        self.builder_digest = desk.registry.put("linuxkit/alpine", "1", {})
        versions = (
            f"image: {host}/me/zfs\nsources:\n- repository: {host}/linuxkit/kernel\n"
            f"  hub: {desk.hub.url}\nopenzfs:\n  api: {desk.github.url}\nlatest: {{kernels: 0}}\n"
            f"on_the_spot: false\nkernels:\n- image: {self.image}\n  desktop: [4.13.0]\n"
        )
        self.versions = versions
        self.git("init", "--quiet", "--bare", "--initial-branch", "main", str(self.origin))
        self.push({"versions.yaml": versions, "linuxkit.yaml": self.parts(pinned=True)})

    def _upstream(self) -> dict[Platform, Digest]:
        registry = self.desk.registry
        manifests, found = [], {}
        for platform in (AMD64, ARM64):
            arch = architecture(platform)
            digest = registry.put_image("linuxkit/kernel", arch, {"of": arch}, arch)
            del registry.manifests["linuxkit/kernel"][arch]
            about = {"os": "linux", "architecture": arch}
            manifests.append({"mediaType": OCI_MANIFEST, "digest": digest, "platform": about})
            found[platform] = parse_digest(digest)
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
        digest = registry.put("linuxkit/kernel", "5.4.39", index, OCI_INDEX)
        images: list[Any] = [
            ("linux", architecture(platform), None, manifest, 1)
            for platform, manifest in found.items()
        ]
        self.desk.hub.repository("linuxkit", "kernel").push("5.4.39", digest, images, DAY)
        return found

    # The repository

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            **{f"GIT_{who}_{what}": "me@x" for who in ("AUTHOR", "COMMITTER") for what in NAMES},
        }
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd or self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def push(self, files: Mapping[str, str]) -> None:
        """Somebody commits."""
        clone = self.directory / f"clone-{len(list(self.directory.glob('clone-*')))}"
        self.git("clone", "--quiet", str(self.origin), str(clone))
        for name, content in files.items():
            (clone / name).write_text(content)
        self.git("add", "--all", cwd=clone)
        self.git("commit", "--quiet", "-m", "by hand", cwd=clone)
        self.git("push", "--quiet", "origin", "HEAD:main", cwd=clone)

    def file(self, name: str) -> str:
        return self.git("show", f"main:{name}", cwd=self.origin)

    def parts(self, *, pinned: bool) -> str:
        """linuxkit.yaml, with the same image for every part of a VM."""
        image = f"{self.builder}@{self.builder_digest}" if pinned else self.builder
        return "".join(f"{name}: {image}\n" for name in COMPONENTS)

    @property
    def commits(self) -> list[str]:
        return self.git("log", "--format=%s", "main", cwd=self.origin).splitlines()

    def _checkout(self, workspace: Path, inputs: Mapping[str, Any]) -> None:
        assert inputs["persist-credentials"] == "false"
        assert inputs.get("ref", "refs/heads/main") == "refs/heads/main"
        self.git("clone", "--quiet", str(self.origin), str(workspace))

    # Its runs

    def run(self, *, by: str = "schedule", schedule: str = "17 */6 * * *", **inputs: Any) -> Run:
        """A new run, none of whose jobs has begun."""
        self.runs += 1
        directory = self.directory / f"run-{self.runs}"
        declared = text_of(SYNC)[True]["workflow_dispatch"]["inputs"]
        assert set(inputs) <= set(declared)
        event: dict[str, Any] = {"repository": {"default_branch": "main"}}
        if by == "schedule":
            assert {"cron": schedule} in text_of(SYNC)[True]["schedule"]
            event["schedule"] = schedule
        github = Context(
            api_url=self.desk.github.url,
            server_url="https://github.example",
            repository="me/install-zfs",
            ref="refs/heads/main",
            ref_name="main",
            run_id=str(self.runs),
            sha="0" * 40,
            token=TOKEN,
            event_name=by,
            event=event,
        )
        contexts = {
            "github": github,
            "vars": Context(self.variables),
            "secrets": Context(self.secrets),
            "inputs": Context({**dict.fromkeys(declared), **inputs}),
        }
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.desk.directory / "home"),
            "PYTHONPATH": str(PROJECT),
            "DOCKER_HOST": f"unix://{self.directory}/no.sock",
        }
        return Run(SYNC, self._checkout, directory, contexts, environment, LEFT_OUT, self.python)

    def deliver(
        self,
        run: Run,
        platform: Platform,
        *,
        error: str = "",
        lacking: bool = False,
        kernel: Digest | None = None,
        tarball: Digest | None = None,
    ) -> Path:
        """What ``hand-over`` leaves in the artifact of a build.

        Args:
            kernel: what the image says that it is for, where that is not the truth.
            tarball: of OpenZFS, as the build had it.
        """
        name = f"{SLUG}-{architecture(platform)}"
        to = run.artifacts / f"delivered-{name}"
        if error:
            builder = f"{self.builder}@{self.builder_digest}"
            inputs = Inputs(self.kernels[platform], ZFS, self.code, builder)
            status = Status.SKIPPED if lacking else Status.FAILED
            delivery = Delivery(SLUG, platform, status, error, 1.0, inputs, lacking)
        else:
            directory = run.directory / "made" / name
            kernel = kernel or self.kernels[platform]
            layout = self._module_image(directory, platform, kernel, tarball or TARBALL)
            delivery = Delivery(
                SLUG, platform, Status.UNCHANGED, "loaded and tried", 1.0, image=layout
            )
        return handover.deliver(delivery, name, to)

    @property
    def code(self) -> str:
        return code_digest(PROJECT)

    def _module_image(
        self, directory: Path, platform: Platform, kernel: Digest, tarball: Digest
    ) -> Layout:
        labels = {
            "install-zfs.builder-digest": self.builder_digest,
            "install-zfs.builder-image": self.builder,
            "install-zfs.kernel-banner": "Linux version 5.4.39-linuxkit",
            "install-zfs.kernel-digest": kernel,
            "install-zfs.kernel-image": self.image,
            "install-zfs.kernel-release": "5.4.39-linuxkit",
            "install-zfs.zfs-version": ZFS,
            TARBALL_LABEL: f"pkg:github/openzfs/zfs@zfs-{ZFS}?checksum={tarball}",
        }
        return built(directory, platform, labels)

    def finish(self, run: Run, *, build: str = "success") -> Ended:
        """The jobs after the plan, with the builds as the test delivered them."""
        if run.ended["plan"].outputs.get("build") != "true":
            build = "skipped"
        run.ended["build"] = Ended(build, {}, "", "")
        published = run.job("publish")
        run.job("report")
        assert run.ended["report"].result == "success", run.ended["report"].printed
        return published

    # What is out there

    @property
    def tags(self) -> set[str]:
        return {tag for tag in self.desk.registry.manifests.get("me/zfs", {}) if ":" not in tag}

    @property
    def assets(self) -> set[str]:
        return {
            asset.name
            for release in self.desk.releases.releases
            if not release.draft
            for asset in release.assets
        }

    @property
    def subjects(self) -> set[tuple[str, str | None]]:
        """All that is there to be signed, and by what name."""
        _, content = self.desk.registry.manifests["me/zfs"][SLUG]
        (release,) = self.desk.releases.releases
        files = {(asset.name, asset.digest) for asset in release.assets if asset.name != SUMS}
        return {*files, (f"{self.desk.registry.host}/me/zfs", bytes_digest(content))}

    @property
    def issues(self) -> list[str]:
        return [one.title for one in self.desk.releases.issues if one.state == "open"]


NAMES = ("NAME", "EMAIL")


def assets(*architectures: str) -> set[str]:
    tars = [f"zfs-{SLUG}-{one}.tar.xz" for one in architectures]
    return {name for tar in tars for name in (tar, sbom_name(tar), provenance_name(tar))} | {SUMS}


ASSETS = assets("amd64", "arm64")


@pytest.fixture
def shop(desk: Desk, tmp_path: Path) -> Shop:
    (tmp_path / "shop").mkdir()
    return Shop(desk, tmp_path / "shop")


def test_a_new_kernel_is_published_for_both_platforms_and_the_next_run_is_idle(
    shop: Shop,
) -> None:
    run = shop.run()
    planned = run.job("plan")
    assert planned.result == "success", planned.printed
    assert (planned.outputs["build"], planned.outputs["publish"]) == ("true", "true")
    assert json.loads(planned.outputs["matrix"])["include"] == [
        {
            "name": f"{SLUG}-{arch}",
            "slug": SLUG,
            "platform": f"linux/{arch}",
            "runner": runner,
            "qemu": qemu,
        }
        for arch, runner, qemu in (
            ("amd64", "ubuntu-24.04", "qemu-system-x86"),
            ("arm64", "ubuntu-24.04-arm", "qemu-system-arm"),
        )
    ]
    assert f"`{shop.image}`" in planned.summary
    assert shop.commits == ["by hand"], "a plan writes nothing"
    for platform in (AMD64, ARM64):
        shop.deliver(run, platform)

    published = shop.finish(run)

    assert published.result == "success", published.printed
    assert "| `published` |" in published.summary
    assert shop.tags == {SLUG, "desktop-4.13.0"}
    _, content = shop.desk.registry.manifests["me/zfs"][SLUG]
    platforms = {one["platform"]["architecture"] for one in json.loads(content)["manifests"]}
    assert run.attested == shop.subjects
    # What attests them has a place among them, too.
    assert platforms == {"amd64", "arm64", "unknown"}
    assert shop.assets == ASSETS
    assert shop.commits == ["Record what is published", "by hand"]
    assert f"zfs: {ZFS}\n" in shop.file("versions.yaml")
    assert f"digest: {TARBALL}\n" in shop.file("openzfs.yaml")
    assert shop.file("linuxkit.yaml") == shop.parts(pinned=True)
    assert json.loads(shop.file("state.json"))["attempts"] == {}
    assert shop.issues == []

    idle = shop.run()
    asked = shop.desk.requests
    planned = idle.job("plan")
    assert (planned.outputs["build"], planned.outputs["publish"]) == ("false", "false")
    assert shop.desk.requests - asked <= 4
    assert shop.finish(idle).result == "skipped"
    assert len(shop.commits) == 2
    # Once a week the publishing job looks all the same, and behind every tag.
    weekly = shop.run(schedule=WEEKLY)
    looks = []
    by_hand = shop.run(by="workflow_dispatch")
    jobs = [partial(one.job, "plan") for one in (idle, by_hand, weekly)]
    for job in (*jobs, partial(shop.finish, weekly)):
        shop.desk.registry.requests.clear()
        shop.desk.github.requests.clear()
        assert job().result == "success"
        tags = shop.desk.registry.count(f"HEAD /v2/me/zfs/manifests/({SLUG}|desktop)")
        looks.append(tags + shop.desk.github.count("GET .*/attestations/"))
    assert looks == [1, 1, 3, 3]
    assert len(shop.commits) == 2


def test_one_platform_that_fails_holds_back_neither_the_other_nor_for_ever(shop: Shop) -> None:
    for attempt in range(1, MOST_ATTEMPTS + 1):
        run = shop.run()
        assert run.job("plan").outputs["build"] == "true"
        shop.deliver(run, AMD64)
        shop.deliver(run, ARM64, error="linux/arm64: the build failed")
        published = shop.finish(run, build="failure")
        assert published.result == "failure"
        # Who types desktop-X may have either machine.
        assert shop.tags == {SLUG}
        assert shop.assets == assets("amd64")
        assert shop.issues == [f"{shop.image} could not be built, tested or published"]
        attempts = json.loads(shop.file("state.json"))["attempts"][SLUG]
        assert attempts.keys() == {"linux/arm64"}
        assert [one["times"] for one in attempts["linux/arm64"]] == [attempt]
    idle = shop.run()
    planned = idle.job("plan")
    assert (planned.outputs["build"], planned.outputs["publish"]) == ("false", "false")
    assert "failed 3 times with the same inputs" in planned.printed
    shop.finish(idle)
    assert len(shop.issues) == 1
    weekly = shop.run(schedule=WEEKLY)
    weekly.job("plan")
    assert "failed 3 times with the same inputs" in shop.finish(weekly).printed
    assert len(shop.issues) == 1

    inputs: dict[str, Any] = {"force-rebuild": True, "refs": SLUG, "limit": 1}
    forced = shop.run(by="workflow_dispatch", **inputs)
    assert forced.job("plan").outputs["build"] == "true"
    for platform in (AMD64, ARM64):
        shop.deliver(forced, platform)
    assert shop.finish(forced).result == "success"
    assert shop.tags == {SLUG, "desktop-4.13.0"}
    assert shop.assets == ASSETS
    assert shop.issues == []
    assert json.loads(shop.file("state.json"))["attempts"] == {}


def test_builds_with_two_tarballs_of_one_version_are_not_published(shop: Shop) -> None:
    run = shop.run()
    run.job("plan")
    shop.deliver(run, AMD64)
    shop.deliver(run, ARM64, tarball=OTHER_TARBALL)
    published = shop.finish(run)
    assert published.result == "failure"
    assert f"two tarballs of ZFS {ZFS} were downloaded" in published.printed
    assert shop.tags == set()
    assert "openzfs.yaml" not in shop.git("ls-tree", "--name-only", "main", cwd=shop.origin)


def test_a_build_with_another_tarball_than_was_recorded_is_not_published(shop: Shop) -> None:
    known = f"tarballs:\n  - version: {ZFS}\n    digest: {OTHER_TARBALL}\n"
    shop.push({"openzfs.yaml": known})
    run = shop.run()
    run.job("plan")
    assert (run.artifacts / "plan" / "plan" / "openzfs.yaml").read_text() == known
    for platform in (AMD64, ARM64):
        shop.deliver(run, platform)
    published = shop.finish(run)
    assert published.result == "failure"
    assert f"the tarball of ZFS {ZFS} is another one than before" in published.printed
    assert shop.tags == set()


def test_the_parts_of_vms_are_pinned_once(shop: Shop) -> None:
    shop.push({"linuxkit.yaml": shop.parts(pinned=False)})
    shop.desk.registry.fail("HEAD /v2/linuxkit/alpine", Response(403), times=None)
    run = shop.run()
    run.job("plan")
    for platform in (AMD64, ARM64):
        shop.deliver(run, platform)
    published = shop.finish(run)
    assert published.result == "success", published.printed
    assert "linuxkit/alpine" in published.printed
    assert shop.file("linuxkit.yaml") == shop.parts(pinned=False)
    shop.desk.registry.recover()
    weekly = shop.run(schedule=WEEKLY)
    weekly.job("plan")
    assert shop.finish(weekly).result == "success"
    assert shop.file("linuxkit.yaml") == shop.parts(pinned=True)
    assert shop.commits[0] == "Record what is published"


def published_for_both(shop: Shop) -> None:
    run = shop.run()
    run.job("plan")
    for platform in (AMD64, ARM64):
        shop.deliver(run, platform)
    assert shop.finish(run).result == "success"


def lose(shop: Shop, tag: str) -> str:
    """Deletes a tag; the digest that was behind it."""
    media_type, content = shop.desk.registry.manifests["me/zfs"].pop(tag)
    return next(
        name
        for name, there in shop.desk.registry.manifests["me/zfs"].items()
        if there == (media_type, content)
    )


def test_what_can_be_brought_back_is_not_built_again(shop: Shop) -> None:
    published_for_both(shop)
    index = lose(shop, SLUG)
    run = shop.run()
    planned = run.job("plan")
    assert planned.result == "success", planned.printed
    assert (planned.outputs["build"], planned.outputs["publish"]) == ("false", "true")
    published = shop.finish(run)
    assert published.result == "success", published.printed
    assert "repaired: the image was missing" in published.printed
    assert run.attested == set(), "what another run built is that run's to sign"
    assert (
        shop.desk.registry.manifests["me/zfs"][SLUG]
        == (shop.desk.registry.manifests["me/zfs"][index])
    )
    planned = shop.run().job("plan")
    assert (planned.outputs["build"], planned.outputs["publish"]) == ("false", "false")


def unsigned(shop: Shop, **how: str) -> Run:
    """Both platforms are published, and nothing of it is signed: the machine is lost, or GitHub
    takes no signature.
    """
    run = shop.run()
    run.job("plan")
    for platform in (AMD64, ARM64):
        shop.deliver(run, platform)
    run.dies_before = how.get("dies_before", "")
    if not run.dies_before:
        shop.desk.github.fail("POST .*/attestations", Response(503))
    assert shop.finish(run).result == "failure"
    assert shop.desk.releases.attestations == []
    assert shop.assets == ASSETS
    return run


def test_what_was_published_and_not_signed_is_signed_by_the_next_run(shop: Shop) -> None:
    unsigned(shop, dies_before="Attest")
    body = shop.desk.releases.releases[0].body
    manifests = dict(shop.desk.registry.manifests["me/zfs"])
    run = shop.run()
    planned = run.job("plan")
    assert planned.result == "success", planned.printed
    assert (planned.outputs["build"], planned.outputs["publish"]) == ("false", "true")
    assert "to repair: it was not signed" in planned.printed
    published = shop.finish(run)
    assert "repaired: it was not signed" in published.printed
    assert published.result == "success", published.printed
    assert run.attested == shop.subjects
    (attestation,) = shop.desk.releases.attestations
    assert attestation.subjects == shop.subjects
    assert shop.desk.registry.manifests["me/zfs"] == manifests
    assert shop.desk.releases.releases[0].body == body
    assert f"zfs: {ZFS}\n" in shop.file("versions.yaml")
    planned = shop.run().job("plan")
    assert (planned.outputs["build"], planned.outputs["publish"]) == ("false", "false")
    weekly = shop.run(schedule=WEEKLY)
    assert "it was not signed" not in weekly.job("plan").printed
    assert shop.finish(weekly).result == "success"
    assert weekly.attested == set()


@pytest.mark.parametrize("by", ["a second attempt", "the weekly look"])
def test_what_github_did_not_sign_is_signed_later(shop: Shop, by: str) -> None:
    run = unsigned(shop)
    # That it was published is recorded all the same.
    assert f"zfs: {ZFS}\n" in shop.file("versions.yaml")
    if by == "the weekly look":
        run = shop.run(schedule=WEEKLY)
        assert run.job("plan").outputs["publish"] == "true"
    published = shop.finish(run)
    assert published.result == "success", published.printed
    assert run.attested == shop.subjects


def test_what_is_repaired_and_was_not_signed_is_signed(shop: Shop) -> None:
    unsigned(shop, dies_before="Attest")
    lose(shop, SLUG)
    run = shop.run()
    planned = run.job("plan")
    assert (planned.outputs["build"], planned.outputs["publish"]) == ("false", "true")
    printed = shop.finish(run).printed
    assert "repaired: the image was missing, it was not signed" in printed
    assert run.attested == shop.subjects


def test_whether_it_is_signed_could_not_be_found_out_and_nothing_is_signed_for_that(
    shop: Shop,
) -> None:
    published_for_both(shop)
    shop.desk.github.fail("GET .*/attestations/", Response(403), times=None)
    run = shop.run(schedule=WEEKLY)
    planned = run.job("plan")
    assert planned.result == "failure"
    assert "/attestations/sha256:" in planned.printed
    assert (planned.outputs["build"], planned.outputs["publish"]) == ("false", "false")
    shop.finish(run)
    assert run.attested == set()
    assert {title.endswith("could not be read completely") for title in shop.issues} == {True}
    shop.desk.github.recover()
    again = shop.run(schedule=WEEKLY)
    assert again.job("plan").outputs["publish"] == "false"
    shop.finish(again)
    assert shop.issues == []


def test_what_others_published_is_not_signed(shop: Shop) -> None:
    """A maintainer's own machine had no signature in mind, so its receipt asks for none."""
    unsigned(shop)
    (release,) = shop.desk.releases.releases
    assert release.body
    assert release.body.count(',"to_sign":true') == 2
    release.body = release.body.replace(',"to_sign":true', "")
    asked = shop.desk.github.count("/attestations/")
    for schedule in ("17 */6 * * *", WEEKLY):
        run = shop.run(schedule=schedule)
        assert run.job("plan").outputs["publish"] == "false"
        shop.finish(run)
        assert run.attested == set()
    assert shop.desk.github.count("/attestations/") == asked
    assert "to_sign" not in release.body


@pytest.mark.parametrize("lost", ["manifest", "blob"])
def test_what_is_nowhere_any_more_is_built_and_joins_what_was_brought_back(
    shop: Shop, lost: str
) -> None:
    published_for_both(shop)
    registry, (release,) = shop.desk.registry, shop.desk.releases.releases
    lose(shop, SLUG)
    name = f"zfs-{SLUG}-arm64.tar.xz"
    release.assets = [one for one in release.assets if one.name != name]
    manifest = next(
        digest
        for digest, (_, content) in registry.manifests["me/zfs"].items()
        if ":" in digest
        and (config := json.loads(content).get("config"))
        and json.loads(registry.blobs[config["digest"]]).get("architecture") == "arm64"
    )
    if lost == "manifest":
        del registry.manifests["me/zfs"][manifest]
    else:
        _, content = registry.manifests["me/zfs"][manifest]
        del registry.blobs[json.loads(content)["layers"][-1]["digest"]]
    failing = shop.run()
    failing.job("plan")
    shop.deliver(failing, ARM64, error="the build failed")
    published = shop.finish(failing, build="failure")
    assert "repaired: the image was missing" in published.printed
    assert SLUG in shop.tags, "what is left does not wait for what failed"

    run = shop.run()
    (row,) = json.loads(run.job("plan").outputs["matrix"])["include"]
    assert row["platform"] == ARM64
    shop.deliver(run, ARM64)
    published = shop.finish(run)
    assert published.result == "success", published.printed
    _, content = registry.manifests["me/zfs"][SLUG]
    found = {one["platform"]["architecture"] for one in json.loads(content)["manifests"]}
    assert found == {"amd64", "arm64", "unknown"}
    assert shop.assets == ASSETS
    # The index that came back with one platform alone was new, too.
    assert {name for name, _ in run.attested if "/" not in name} == ASSETS - {SUMS}
    assert shop.run().job("plan").outputs["build"] == "false"


def test_what_can_be_brought_back_does_not_wait_for_a_platform_that_never_passed(
    shop: Shop,
) -> None:
    for _ in range(2):
        run = shop.run()
        include = json.loads(run.job("plan").outputs["matrix"])["include"]
        shop.deliver(run, AMD64)
        shop.deliver(run, ARM64, error="the build failed")
        published = shop.finish(run, build="failure")
        assert shop.tags == {SLUG}
        lose(shop, SLUG)
    assert [row["platform"] for row in include] == [ARM64]
    assert "repaired: the image was missing" in published.printed


def test_what_could_not_be_looked_for_is_neither_built_nor_forgotten(shop: Shop) -> None:
    published_for_both(shop)
    lose(shop, SLUG)
    release = shop.desk.releases.releases[0]
    release.assets = [one for one in release.assets if not one.name.endswith(".tar.xz")]
    shop.desk.registry.fail("GET /v2/me/zfs/manifests/sha256", Response(403), times=None)
    planned = shop.run().job("plan")
    assert planned.result == "failure"
    assert (planned.outputs["build"], planned.outputs["publish"]) == ("false", "true")


def test_a_tampered_delivery_is_not_published(shop: Shop) -> None:
    run = shop.run()
    run.job("plan")
    for platform in (AMD64, ARM64):
        delivered = shop.deliver(run, platform)
        blob = max(delivered.glob("image/blobs/sha256/*"), key=lambda path: path.stat().st_size)
        blob.write_bytes(blob.read_bytes() + b"x")
    published = shop.finish(run)
    assert published.result == "failure"
    assert "does not have its checksum" in published.printed
    assert shop.tags == set()
    assert shop.desk.releases.releases == []


def test_an_image_of_another_kernel_is_not_published(shop: Shop) -> None:
    run = shop.run()
    run.job("plan")
    for platform, other in ((AMD64, ARM64), (ARM64, AMD64)):
        shop.deliver(run, platform, kernel=shop.kernels[other])
    published = shop.finish(run)
    assert published.result == "failure"
    assert "what was delivered is for another kernel" in published.printed
    assert shop.tags == set()


def test_a_kernel_image_that_lacks_something_is_left_out(shop: Shop) -> None:
    lack = "the kernel image has no kernel-dev.tar to compile against"
    run = shop.run()
    run.job("plan")
    shop.deliver(run, AMD64)
    shop.deliver(run, ARM64, error=lack, lacking=True)
    assert shop.finish(run).result == "success"
    # For the other platform it has everything.
    assert shop.assets == assets("amd64")
    assert "skip:" not in shop.file("versions.yaml")
    assert f"{lack}; `without: [linux/arm64]` in its entry" in shop.file("state.json")


def test_a_kernel_image_that_lacks_something_for_all_platforms_is_never_tried_again(
    shop: Shop,
) -> None:
    lack = "the kernel image has no kernel-dev.tar to compile against"
    run = shop.run()
    run.job("plan")
    for platform in (AMD64, ARM64):
        shop.deliver(run, platform, error=lack, lacking=True)
    assert shop.finish(run).result == "success"
    assert f'skip: "{lack}' in shop.file("versions.yaml")
    assert shop.run().job("plan").outputs["build"] == "false"
    assert shop.issues == []


def test_a_build_without_a_result_fails_its_kernel_alone(shop: Shop) -> None:
    run = shop.run()
    planned = run.job("plan")
    include = json.loads(planned.outputs["matrix"])["include"]
    (row,) = (one for one in include if one["platform"] == native_platform())
    # There is no engine here, and the command says so.
    built = run.job("build", row)
    assert built.result == "failure"
    assert "is not installed" in built.printed or "no Docker engine answers" in built.printed
    assert {path.name for path in run.artifacts.iterdir()} == {"plan"}
    published = shop.finish(run, build="failure")
    assert published.result == "failure"
    assert "its job delivered nothing" in published.printed
    assert len(shop.issues) == 1


DOCKER = """\
case "$2" in
    version) echo v0.29 ;;
    inspect) echo "Driver: docker-container" ;;
    build) echo "#5 0.1 configure: error: no acceptable C compiler" && exit 1 ;;
esac
"""


def test_a_build_that_fails_hands_over_why(shop: Shop, engine: dict[str, str]) -> None:
    shop.desk.provide("docker", script=DOCKER)
    shop.desk.provide(*QEMU)
    run = shop.run()
    include = json.loads(run.job("plan").outputs["matrix"])["include"]
    path = f"{shop.desk.bin}{os.pathsep}{os.environ['PATH']}"
    run.environment = {**run.environment, **engine, "PATH": path}
    for row in include:
        if row["platform"] == native_platform():
            built = run.job("build", row)
            assert built.result == "failure"
            assert "no acceptable C compiler" in built.printed
            name = row["name"]
        else:
            shop.deliver(run, row["platform"])
    assert f"logs-{name}" in {path.name for path in run.artifacts.iterdir()}
    assert shop.finish(run, build="failure").result == "failure"
    (attempts,) = json.loads(shop.file("state.json"))["attempts"].values()
    ((attempt,),) = attempts.values()
    assert attempt["times"] == 1
    assert attempt["inputs"]["kernel"] == shop.kernels[native_platform()]
    assert attempt["inputs"]["zfs"] == ZFS
    # The other platform is out, and the issue names the one that is not.
    assert len(shop.assets) == len(assets("amd64"))
    (issue,) = shop.desk.releases.issues
    assert f"    {native_platform()}: " in issue.body
    assert "the build failed" in issue.body


def test_what_could_not_be_read_is_told_and_holds_back_nothing(shop: Shop) -> None:
    shop.desk.hub.repositories.clear()
    run = shop.run()
    planned = run.job("plan")
    assert planned.result == "failure"
    assert planned.outputs["build"] == "true"
    for platform in (AMD64, ARM64):
        shop.deliver(run, platform)
    shop.finish(run)
    assert shop.assets == ASSETS
    (title,) = shop.issues
    assert title.endswith("could not be read completely")
    # An incomplete look is none.
    assert state.NAME not in shop.git("ls-tree", "--name-only", "main", cwd=shop.origin)


def test_what_was_built_is_published_though_upstream_names_it_no_more(shop: Shop) -> None:
    head, _, _ = shop.versions.partition("kernels:\n")
    host = shop.desk.registry.host
    older = (
        f"- image: {host}/linuxkit/kernel:4.19.1\n  digest: sha256:{'0' * 64}\n"
        f"  platforms: {{linux/amd64: 'sha256:{'0' * 64}'}}\n  skip: by hand\n"
        f"  aliases: [{host}/linuxkit/kernel:desktop-9.1.0]\n"
    )
    shop.push({"versions.yaml": f"{head}kernels:\n{older}"})
    # Upstream has moved a second name from the older kernel to this one.
    hub = shop.desk.hub.repository("linuxkit", "kernel")
    now = shop.desk.registry.manifests["linuxkit/kernel"]["5.4.39"]
    shop.desk.registry.manifests["linuxkit/kernel"]["desktop-9.1.0"] = now
    image: Any = ("linux", "amd64", None, "sha256:" + "0" * 64, 1)
    hub.push("4.19.1", "sha256:" + "0" * 64, [image], DAY)
    hub.tags["desktop-9.1.0"] = replace(hub.tags["5.4.39"], name="desktop-9.1.0")
    run = shop.run()
    assert run.job("plan").outputs["build"] == "true"
    for platform in (AMD64, ARM64):
        shop.deliver(run, platform)
    shop.desk.hub.repositories.clear()
    shop.finish(run)
    assert shop.assets == ASSETS
    assert f"image: {shop.image}\n" in shop.file("versions.yaml")
    recorded = shop.file("versions.yaml")
    assert recorded.count("kernel:desktop-9.1.0") == 1, recorded


def test_a_run_by_hand_for_one_kernel_publishes_no_other(shop: Shop) -> None:
    published_for_both(shop)
    lose(shop, SLUG)
    other = shop.desk.registry.put_image("linuxkit/kernel", "5.4.40", {"of": "another"}, "amd64")
    image: Any = ("linux", "amd64", None, other, 1)
    shop.desk.hub.repository("linuxkit", "kernel").push("5.4.40", other, [image], DAY)
    run = shop.run(by="workflow_dispatch", refs="linuxkit-kernel-5.4.40")
    planned = run.job("plan")
    assert (planned.outputs["build"], planned.outputs["publish"]) == ("true", "true")
    printed = shop.finish(run, build="failure").printed
    assert "its job delivered nothing" in printed
    assert "not chosen in this run" in printed
    assert SLUG not in shop.tags
    run = shop.run()
    run.job("plan")
    assert "repaired: the image was missing" in shop.finish(run, build="failure").printed


def test_the_stop_variable_stops_a_run(shop: Shop) -> None:
    shop.variables["INSTALL_ZFS_STOP"] = "2.1.16 eats data"
    for schedule in ("17 */6 * * *", WEEKLY):
        run = shop.run(schedule=schedule)
        planned = run.job("plan")
        assert planned.result == "success"
        assert (planned.outputs["build"], planned.outputs["publish"]) == ("false", "false")
        assert "publishing is stopped: INSTALL_ZFS_STOP is set to" in planned.printed
        assert shop.finish(run).result == "skipped"
    assert shop.tags == set()


def test_a_job_that_says_nothing_has_an_issue(shop: Shop) -> None:
    shop.push({"versions.yaml": "image: [\n"})
    run = shop.run()
    assert run.job("plan").result == "failure"
    run.ended["build"] = Ended("skipped", {}, "", "")
    assert run.job("publish").result == "skipped"
    # Nor can what the job itself needs be read; it tells all the same.
    assert run.job("report").result == "failure"
    assert shop.issues == ["the job plan of the workflow sync did not end well"]
    shop.push({"versions.yaml": shop.versions})
    run = shop.run()
    run.job("plan")
    shop.finish(run)
    assert "the job plan of the workflow sync did not end well" not in shop.issues


def test_a_commit_in_between_is_kept(shop: Shop) -> None:
    run = shop.run()
    run.job("plan")
    for platform in (AMD64, ARM64):
        shop.deliver(run, platform)
    shop.push({"README.md": "by hand"})
    assert shop.finish(run).result == "success"
    assert shop.commits == ["Record what is published", "by hand", "by hand"]


def test_the_same_lines_changed_in_between_are_kept_and_found_again(shop: Shop) -> None:
    run = shop.run()
    run.job("plan")
    for platform in (AMD64, ARM64):
        shop.deliver(run, platform)
    stands = shop.file("versions.yaml")
    changed = stands.replace("desktop: [4.13.0]", "desktop: [4.13.0, 4.13.1]")
    origin = shop.origin / "hooks" / "update"
    # Somebody pushes in the very moment between the checkout and the push.
    shop.push({"versions.yaml": changed})
    later = shop.git("rev-parse", "main", cwd=shop.origin).strip()
    before = shop.git("rev-parse", "main~", cwd=shop.origin).strip()
    shop.git("update-ref", "refs/heads/main", before, cwd=shop.origin)
    origin.write_text(f"#!/bin/sh\nrm -- $0\ngit update-ref refs/heads/main {later}\nexit 1\n")
    origin.chmod(0o755)
    published = shop.finish(run)
    assert published.result == "failure"
    assert "somebody else changed the same lines" in published.printed
    assert shop.file("versions.yaml") == changed
    assert shop.tags == {SLUG, "desktop-4.13.0"}

    again = shop.run()
    assert again.job("plan").outputs["build"] == "false"
    assert shop.finish(again).result == "success"
    assert shop.tags == {SLUG, "desktop-4.13.0", "desktop-4.13.1"}
    assert f"zfs: {ZFS}\n" in shop.file("versions.yaml")
    assert len(shop.desk.releases.releases) == 1


def test_a_branch_that_takes_no_push_is_told_of(shop: Shop) -> None:
    hook = shop.origin / "hooks" / "update"
    hook.write_text("#!/bin/sh\necho protected branch >&2\nexit 1\n")
    hook.chmod(0o755)
    run = shop.run()
    run.job("plan")
    for platform in (AMD64, ARM64):
        shop.deliver(run, platform)
    published = shop.finish(run)
    assert published.result == "failure"
    assert "protected branch" in published.printed
    assert "the branch takes no push" in published.printed


def test_a_branch_publishes_nothing(shop: Shop) -> None:
    run = shop.run(by="workflow_dispatch")
    github = Context({**run.contexts["github"], "ref_name": "topic"})
    run.contexts = {**run.contexts, "github": github}
    assert run.job("plan").result == "skipped"
    run.ended["build"] = Ended("skipped", {}, "", "")
    assert run.job("publish").result == "skipped"
    assert run.job("report").result == "skipped"
    assert state.NAME not in shop.git("ls-tree", "--name-only", "main", cwd=shop.origin)
