"""The TypeScript of docs/other-languages.md, run as it stands there with packages from the npm registry."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from infra.platform.settings import Kafka
from streams.messages import Recommended, RecommendReply, RecommendRequest, encode
from tests.harness.needs import NPM, needs
from tests.unit.clients.responder import responding

pytestmark = [pytest.mark.system, needs(NPM)]

PAGE = Path(__file__).parents[3] / "docs" / "other-languages.md"
USER = 'ann/ä "quoted" 😀'
WAIT_S = 180.0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of the page beside its packages."""
    [code] = re.findall(r"```ts\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    place = tmp_path_factory.mktemp("typescript")
    (place / "package.json").write_text(json.dumps({"private": True, "type": "module"}))
    (place / "ask.ts").write_text(code, "utf-8")
    install = ["npm", "install", "--no-fund", "--no-audit", "--ignore-scripts", "kafkajs@2", "tsx@4"]
    subprocess.run(install, cwd=place, check=True, capture_output=True, timeout=WAIT_S)
    return place / "ask.ts"


def test_typescript_asks_and_gets_its_list(topics: Kafka, program: Path):
    def answer(request: RecommendRequest, copy: int) -> list[bytes]:
        items = tuple(Recommended(f"{request.user_id} {rank}", rank, "index") for rank in (1, 2))
        return [encode(RecommendReply(request.request_id, items))]

    known = {"BOOTSTRAP": topics.bootstrap, "TOPIC_PREFIX": topics.topic_prefix}
    tsx = str(program.parent / "node_modules" / ".bin" / "tsx")
    with responding(topics, answer) as seen:
        run = [tsx, program.name, USER]
        done = subprocess.run(
            run, cwd=program.parent, env=os.environ | known, capture_output=True, text=True, timeout=WAIT_S, check=False
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [f"{USER} 1", f"{USER} 2"]
    [(_, request)] = seen
    assert (request.user_id, request.k, request.deadline_ms) == (USER, 20, 5000)
