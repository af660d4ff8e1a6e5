"""Messages that say nothing to a user are hidden; all others are not."""

import logging

import diffusers.utils.logging

from ldpruner.pipelines.library_logs import without_chatter


def test_only_chatter_is_hidden_and_only_inside_the_block() -> None:
    logger = diffusers.utils.logging.get_logger("diffusers.pipelines.pipeline_utils")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("diffusers").addHandler(handler)
    try:
        with without_chatter():
            logger.warning("Expected types for unet: UNet2DModel, got PrunedUNet2DModel.")
            with without_chatter():
                logger.warning("a weight is missing")
            logger.warning("Expected types for unet: UNet2DModel, got PrunedUNet2DModel.")
        logger.warning("Expected types for vae: AutoencoderKL, got VQModel.")
    finally:
        logging.getLogger("diffusers").removeHandler(handler)
    assert lines == ["a weight is missing", "Expected types for vae: AutoencoderKL, got VQModel."]
