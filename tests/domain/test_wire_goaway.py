from __future__ import annotations

from hyperframe.frame import Frame, GoAwayFrame

from holdfast.domain.wire.goaway import FIRST_GOAWAY


def test_it_is_what_another_parser_takes_for_it() -> None:
    frame, length = Frame.parse_frame_header(memoryview(FIRST_GOAWAY[:9]))
    assert isinstance(frame, GoAwayFrame)
    assert length == len(FIRST_GOAWAY) - 9
    frame.parse_body(memoryview(FIRST_GOAWAY[9:]))
    assert (frame.stream_id, frame.last_stream_id, frame.error_code) == (0, 2**31 - 1, 0)
    assert frame.serialize() == FIRST_GOAWAY
