import os
import signal
import threading

import pytest

from hopd.distiller import Distiller
from hopd.errors import Interrupted
from hopd.processes import Processes
from hopd.recipe import Recipe
from hopd.rollout import NativeEngine
from hopd.run import checkpoint
from hopd.run.interruption import Interruption
from hopd.run.progress import Progress


def tell(signum=signal.SIGTERM):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_inside_an_interruptible_block_a_signal_raises_at_once(signum, code):
    went_on = False
    with Interruption() as interruption, pytest.raises(Interrupted) as stopped, interruption.interruptible():
        went_on = tell(signum) is None
    assert stopped.value.exit_code == code
    assert not went_on


def test_elsewhere_it_waits_for_the_next_interruptible_block():
    with Interruption() as interruption:
        with interruption.interruptible():
            pass
        tell()
        with pytest.raises(Interrupted), interruption.interruptible():
            pytest.fail("the signal was forgotten")


def test_several_processes_stop_together_between_two_steps():
    class AnotherWasTold(Processes):
        def total(self, value):
            return value + 1

    with Interruption(together=True) as interruption:
        interruption.agree(Processes())
        tell()
        with interruption.interruptible():
            pass
        with pytest.raises(Interrupted):
            interruption.agree(Processes())
    with Interruption(together=True) as untold, pytest.raises(Interrupted):
        untold.agree(AnotherWasTold())


def test_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_in_another_thread_is_told():
    before, stopped = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interruption() as interruption:
            interruption.tell(signal.SIGTERM)
            with pytest.raises(Interrupted), interruption.interruptible():
                pytest.fail("what it was told was forgotten")
            stopped.append(interruption.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert stopped == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_step_that_is_given_up_is_saved_around_and_accounted_for(tmp_path):
    class Told(NativeEngine):
        """Samples, and is told to stop while it samples the third step."""

        calls = 0

        def extend(self, *args):
            self.calls += 1
            if self.calls == 3:
                tell()
            return super().extend(*args)

    recipe = Recipe.parse(
        {
            "name": "run",
            "output": str(tmp_path),
            "student": {"model": "package:hopd/quickstart/student"},
            "teacher": {"model": "package:hopd/quickstart/teacher"},
            "task": {"source": "addition", "size": 32},
            "rollout": {"prompts": 4, "full_tokens": 60},
            "horizon": {"controller": "truncated", "tokens": 6},
            "training": {"steps": 5, "learning_rate": 1e-4},
        }
    )
    run = Distiller.of(recipe, progress=Progress(quiet=True))
    run.parts.engine = Told(run.parts.student)
    with pytest.raises(Interrupted):
        run.train()
    assert [c.step for c in checkpoint.find(run.parts.directory.checkpoints)] == [2]
    assert run.parts.ledger.run.generated_tokens == 2 * 4 * 6
    assert run.parts.ledger.redone.seconds["rollout"] > 0
    resumed = Distiller.of(recipe, resume=True, progress=Progress(quiet=True))
    resumed.train()
    assert resumed.parts.ledger.run.generated_tokens == 5 * 4 * 6
    assert resumed.parts.ledger.redone.seconds["rollout"] > 0
