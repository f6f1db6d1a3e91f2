"""The check of all samples before the first step: processes share it, and later runs find it in a file."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparse_vlm.data.conversations.findings import Check, Checks, Finding, Known, cpus, each_finding, stops
from sparse_vlm.errors import UserError
from sparse_vlm.files import read_object, to_json, write_text
from train.stages.processes import gathered, share
from train.stages.stage import StageArguments

logger = logging.getLogger(__name__)
KEPT_FROM = 10.0  # seconds: what took less is checked again


class SharedChecks(Checks):
    """Checks each sample in one of the processes and gives all of them the findings.

    Findings are kept in a file for later runs. The name of the file is a fingerprint of the rules of the check, and in
    it the key of each finding is a hash of the sample and of the paths, sizes and times of its images. So whatever
    changes is checked again.

    Args:
        args: the stage's arguments: processes, data workers, progress bar, output directory.
        data_path: the data. The file is in a folder beside them, NAME.checked, or in output_dir if that cannot be
            written or the data are no file.
        preprocessing: settings of the image processor, which decide where regions may lie.
    """

    def __init__(self, args: StageArguments, data_path: str, preprocessing: Mapping[str, Any]) -> None:
        self.args, self.preprocessing = args, preprocessing
        self.folders = [Path(str(args.output_dir)) / f"{Path(data_path).name}.checked"]
        if Path(data_path).is_file():
            self.folders.insert(0, Path(f"{data_path}.checked"))

    def run(self, check: Check, count: int, rules: Mapping[str, Any], *, errors: bool, images: bool) -> list[Finding]:
        start = time.monotonic()
        rules = {**rules, "preprocessing": self.preprocessing}
        file = f"{hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]}.json"
        known = self._known(file, rules)
        threads = max(1, cpus() // (self.args.world_size * max(1, self.args.dataloader_num_workers)))
        places = share(range(count), self.args)
        mine = []
        found = each_finding(
            check, places, known, workers=self.args.dataloader_num_workers, threads=threads if images else 1
        )
        silent = self.args.disable_tqdm or self.args.process_index > 0
        for finding in tqdm(found, "checking samples", len(places), disable=silent):
            mine.append(finding)
            if errors and stops(finding):
                break  # but the other processes wait for this one's share
        shares = gathered(mine, self.args)
        _require_good(shares, errors)
        findings: list[Finding] = [Finding()] * count
        for rank, part in enumerate(shares):
            findings[rank :: self.args.world_size] = part
        if self.args.process_index == 0:
            self._keep(file, rules, known, findings, time.monotonic() - start)
        return findings

    def _known(self, file: str, rules: Mapping[str, Any]) -> Known:
        """Return what earlier runs have found, by key."""
        path = next((folder / file for folder in self.folders if (folder / file).exists()), None)
        if path is None:
            return {}
        kept = read_object(path)
        if kept.keys() != {"rules", "findings"} or kept["rules"] != json.loads(json.dumps(rules)):
            raise UserError(f"{path} is not what an earlier run has written. Remove it.")
        logger.info("Samples that have not changed since an earlier run were checked then: %s", path)
        return {key: Finding(*values)._replace(key=key) for key, values in kept["findings"].items()}

    def _keep(self, file: str, rules: Mapping[str, Any], known: Known, findings: list[Finding], seconds: float) -> None:
        """Write the findings, if they took time and there are new ones."""
        if seconds < KEPT_FROM:
            return
        logger.info("Checked %d samples in %.1f s.", len(findings), seconds)
        keyed = {finding.key: list(finding[:-1]) for finding in findings if finding.key is not None}
        if keyed.keys() <= known.keys():
            return
        text = to_json({"rules": rules, "findings": keyed}, file)
        for folder in self.folders:
            try:
                write_text(folder / file, text)
            except UserError as error:
                logger.warning("%s", error)
            else:
                logger.info("Later runs find this check in %s.", folder / file)
                return


def _require_good(shares: list[list[Finding]], errors: bool) -> None:
    """Raise the error of the first bad sample, the same one in all processes."""
    if not errors:
        return
    last = [(len(share), rank, share[-1].problem) for rank, share in enumerate(shares) if share and stops(share[-1])]
    if last:
        raise UserError(min(last, key=lambda found: found[:2])[2])
