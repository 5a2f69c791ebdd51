"""A platform's models and events, ready to answer."""

from __future__ import annotations

from client.config.platform_file import PlatformFile
from client.recommender.serving.fitted_platform import ModelInputs
from client.recommender.tell import UNREPORTED, Reports
from client.serving.answers import PlatformAnswers
from client.serving.event_log import MOST_EVENTS, EventLog
from client.serving.served_models import ServedModels


def served_answers(
    file: PlatformFile,
    inputs: ModelInputs,
    *,
    most: int = MOST_EVENTS,
    joined: bool = False,
    reports: Reports = UNREPORTED,
) -> PlatformAnswers:
    """The answers of a platform; they are to be closed.

    Args:
        most, joined: As `client.serving.event_log.EventLog`.

    Raises:
        InputError: a model or the sources cannot be used.
        StorageError: another server has the events, or they cannot be read.
    """
    log = EventLog(file.state / "serving", most=most, joined=joined)
    try:
        answers = PlatformAnswers(file, ServedModels(file, inputs, reports), log)
        reports.tell("making the first answer")
        answers.warm()
    except BaseException:
        log.close()
        raise
    return answers
