"""Bodies of requests: read up to a bound, and taken apart where they are uploaded files."""

from __future__ import annotations

from email.parser import BytesHeaderParser

from starlette.requests import Request

from .protocol import ProtocolError


async def bounded_body(http: Request, most_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        ProtocolError: 413, when it is larger than that.
    """
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > most_bytes:
            raise ProtocolError(413, f"The request body is larger than {most_bytes} bytes.")
    return bytes(body)


def form_fields(body: bytes, content_type: str) -> dict[str, tuple[str, bytes]]:
    """The fields of a multipart/form-data body (RFC 7578) by name, as (file name, content).

    Raises:
        ProtocolError: 400, when it is none.
    """
    boundary = _headers(b"content-type: " + content_type.encode("latin-1")).get_param("boundary")
    if not content_type.lower().startswith("multipart/form-data") or not isinstance(boundary, str):
        raise ProtocolError(400, "The body must be multipart/form-data.")
    fields = {}
    # The first part and what follows the last boundary are no fields.
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1"))[1:]:
        head, blank, content = part.partition(b"\r\n\r\n")
        if not blank:
            continue
        headers = _headers(head.lstrip(b"\r\n"))
        name = headers.get_param("name", header="content-disposition")
        if isinstance(name, str):
            fields[name] = (headers.get_filename() or "", content)
    return fields


def _headers(text: bytes):  # type: ignore[no-untyped-def]
    return BytesHeaderParser().parsebytes(text + b"\r\n\r\n")
