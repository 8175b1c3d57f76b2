//! Compressed clusters: bytes to streams and back, and the clusters that were inflated last.
//!
//! Each compressed cluster is a stream of its own, which inflates to exactly one cluster. What the image says about
//! its length has the precision of a sector: bytes behind the end of the stream mean nothing.

mod inflated;
mod reader;

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::find_frame_compressed_size;

use crate::format::compression::CompressionType;
use crate::format::geometry::{to_u64, to_usize};
use crate::format::limits::{COMPRESSED_ALIGN_BYTES, ZLIB_LEVEL, ZLIB_WINDOW_BITS, ZSTD_LEVEL};

pub(crate) use inflated::Inflated;
pub(crate) use reader::Reader;

/// A stream of one cluster, filled up to whole sectors; `None` where that saves less than a sector.
pub(crate) fn compress(compression: CompressionType, cluster: &[u8]) -> Option<Vec<u8>> {
    let mut stream = vec![0; cluster.len().checked_sub(COMPRESSED_ALIGN_BYTES)?];
    // Both stop where the stream is longer than that.
    let len = match compression {
        CompressionType::Zlib => {
            let level = flate2::Compression::new(ZLIB_LEVEL);
            let mut deflate = Compress::new_with_window_bits(level, false, ZLIB_WINDOW_BITS);
            let status = deflate.compress(cluster, &mut stream, FlushCompress::Finish);
            matches!(status, Ok(Status::StreamEnd)).then(|| to_usize(deflate.total_out()))?
        }
        CompressionType::Zstd => {
            let mut context = Compressor::new(ZSTD_LEVEL).ok()?;
            context.compress_to_buffer(cluster, &mut stream[..]).ok()?
        }
    };
    // A compressor may use the room behind its stream as it likes.
    stream[len..].fill(0);
    stream.truncate(len.next_multiple_of(COMPRESSED_ALIGN_BYTES));
    Some(stream)
}

/// Inflates the stream at the beginning of `stream`, which must fill `into`: no more and no less.
///
/// # Errors
/// What is wrong with it, in words.
fn decompress(
    compression: CompressionType,
    stream: &[u8],
    into: &mut [u8],
) -> Result<(), &'static str> {
    match compression {
        CompressionType::Zlib => decompress_zlib(stream, into),
        CompressionType::Zstd => decompress_zstd(stream, into),
    }
}

fn decompress_zlib(stream: &[u8], into: &mut [u8]) -> Result<(), &'static str> {
    // The widest window: QEMU writes with 12 bits and reads in one go, where the window does not matter.
    let mut inflate = Decompress::new(false);
    let status = inflate
        .decompress(stream, into, FlushDecompress::Finish)
        .map_err(|_| DAMAGED)?;
    let is_full = inflate.total_out() == to_u64(into.len());
    match status {
        Status::StreamEnd if is_full => Ok(()),
        Status::Ok | Status::BufError if is_full => Err(TOO_LONG),
        _ => Err(TOO_SHORT),
    }
}

/// Frame by frame, each in one call: the output is the window, so that no header decides about memory.
fn decompress_zstd(stream: &[u8], into: &mut [u8]) -> Result<(), &'static str> {
    let mut context = Decompressor::new().map_err(|_| "zstd has no memory")?;
    let (mut rest, mut filled) = (stream, 0);
    while filled < into.len() {
        if rest.is_empty() {
            return Err(TOO_SHORT);
        }
        // At least the magic is consumed, so that this ends.
        let len = find_frame_compressed_size(rest).map_err(|_| DAMAGED)?;
        let (frame, behind) = rest.split_at_checked(len).ok_or(DAMAGED)?;
        filled += context
            .decompress_to_buffer(frame, &mut into[filled..])
            .map_err(|_| DAMAGED)?;
        rest = behind;
    }
    Ok(())
}

const DAMAGED: &str = "stream is damaged";
const TOO_SHORT: &str = "stream is too short";
const TOO_LONG: &str = "stream is too long";

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const TYPES: [CompressionType; 2] = [CompressionType::Zlib, CompressionType::Zstd];

    fn stream(compression: CompressionType, data: &[u8]) -> Vec<u8> {
        match compression {
            CompressionType::Zlib => {
                let level = flate2::Compression::default();
                let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
            CompressionType::Zstd => zstd::bulk::compress(data, 3).unwrap(),
        }
    }

    fn data(len: usize) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(3);
        (0..len).map(|_| rng.u8(..) & 7).collect()
    }

    #[test]
    fn a_stream_is_exactly_one_cluster() {
        for compression in TYPES {
            let data = data(4096);
            let inflate = |data: &[u8], behind: &[u8]| {
                let mut stream = stream(compression, data);
                stream.extend_from_slice(behind);
                let mut into = vec![0xa5; 4096];
                decompress(compression, &stream, &mut into).map(|()| into)
            };
            assert_eq!(inflate(&data, &[]), Ok(data.clone()));
            // The rest of the last sector is anybody's.
            assert_eq!(inflate(&data, &[0; 300]), Ok(data.clone()));
            assert_eq!(inflate(&data, &data), Ok(data.clone()));
            assert!(inflate(&data[1..], &[]).is_err(), "{compression:?}");
            assert!(inflate(&[], &[]).is_err(), "{compression:?}");
            let longer: Vec<u8> = data.iter().chain(&[1]).copied().collect();
            assert!(inflate(&longer, &[]).is_err(), "{compression:?}");
        }
    }

    #[test]
    fn what_is_compressed_inflates_again() {
        let mut rng = fastrand::Rng::with_seed(9);
        for compression in TYPES {
            for bits in 9..=21 {
                let mut cluster = data(1 << bits);
                let packed = compress(compression, &cluster);
                // The smallest cluster is a sector: nothing is smaller.
                assert_eq!(packed.is_some(), bits > 9, "{compression:?} bits={bits}");
                if let Some(stream) = packed {
                    assert!(stream.len() < cluster.len() && stream.len().is_multiple_of(512));
                    let mut into = vec![0; cluster.len()];
                    assert_eq!(decompress(compression, &stream, &mut into), Ok(()));
                    assert!(into == cluster, "{compression:?} bits={bits}");
                }
                rng.fill(&mut cluster);
                assert_eq!(compress(compression, &cluster), None);
            }
        }
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        for compression in TYPES {
            let whole = stream(compression, &data(4096));
            for len in 0..whole.len() {
                let mut into = vec![0; 4096];
                let result = decompress(compression, &whole[..len], &mut into);
                assert!(result.is_err(), "{compression:?} len={len}");
            }
        }
    }

    /// QEMU reads clusters of several frames, and streams whose header does not tell the size.
    #[test]
    fn a_zstd_cluster_may_have_several_frames() {
        let data = data(4096);
        let mut frames = zstd::stream::encode_all(&data[..1000], 19).unwrap();
        frames.extend(stream(CompressionType::Zstd, &data[1000..]));
        let mut into = vec![0; 4096];
        assert_eq!(
            decompress(CompressionType::Zstd, &frames, &mut into),
            Ok(())
        );
        assert_eq!(into, data);
    }

    #[test]
    fn random_bytes_are_an_error_at_most() {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut errors = 0;
        for round in 0..4000 {
            let compression = TYPES[round % 2];
            let mut stream = stream(compression, &data(4096));
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(0..stream.len());
                stream[at] = rng.u8(..);
            }
            let mut into = vec![0; 4096];
            // Neither format has a checksum here: what still inflates is not noticed.
            errors += u32::from(decompress(compression, &stream, &mut into).is_err());
        }
        assert!(errors > 1000, "errors={errors}");
    }
}
