//! A raw NBD connection for misbehaving: it says exactly what a test wants, and nothing for it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::hub::DEADLINE;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";

/// A connection past its handshake, with simple replies.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    cookie: u64,
}

impl Wire {
    /// Connects and negotiates `export` with NBD_OPT_EXPORT_NAME and NO_ZEROES.
    ///
    /// # Panics
    /// When the server does not know the export or does not answer.
    #[must_use]
    pub fn open(server: SocketAddr, export: &str) -> Self {
        let mut stream = TcpStream::connect(server).expect("the server listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(OPTION_MAGIC);
        hello.extend(1u32.to_be_bytes());
        hello.extend(
            u32::try_from(export.len())
                .expect("a short name")
                .to_be_bytes(),
        );
        hello.extend(export.as_bytes());
        stream.write_all(&hello).expect("the server listens");
        let mut size_and_flags = [0; 10];
        stream
            .read_exact(&mut size_and_flags)
            .expect("the export is known");
        Self { stream, cookie: 0 }
    }

    /// Sends a request header alone; returns its cookie.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn send_header(&mut self, flags: u16, command: u16, offset: u64, len: u32) -> u64 {
        self.cookie += 1;
        let mut header = 0x2560_9513_u32.to_be_bytes().to_vec();
        header.extend(flags.to_be_bytes());
        header.extend(command.to_be_bytes());
        header.extend(self.cookie.to_be_bytes());
        header.extend(offset.to_be_bytes());
        header.extend(len.to_be_bytes());
        self.stream
            .write_all(&header)
            .expect("the connection lives");
        self.cookie
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, data: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(data)
    }

    /// Reads one simple reply: its error and its cookie.
    ///
    /// # Errors
    /// When the connection ends or the deadline passes.
    pub fn reply(&mut self) -> std::io::Result<(u32, u64)> {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes(), "a simple reply");
        let error = u32::from_be_bytes(reply[4..8].try_into().expect("four bytes"));
        let cookie = u64::from_be_bytes(reply[8..].try_into().expect("eight bytes"));
        Ok((error, cookie))
    }

    /// Writes and waits for the answer's error number.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        let len = u32::try_from(data.len()).expect("a request fits");
        let cookie = self.send_header(0, 1, offset, len);
        self.send(data).expect("the connection lives");
        let (error, answered) = self.reply().expect("an answer");
        assert_eq!(answered, cookie);
        error
    }

    /// Reads a range that is there.
    ///
    /// # Panics
    /// When the connection is gone or the request fails.
    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let cookie = self.send_header(0, 0, offset, len);
        assert_eq!(self.reply().expect("an answer"), (0, cookie));
        let mut data = vec![0; len.try_into().expect("a length")];
        self.stream.read_exact(&mut data).expect("the data");
        data
    }

    /// Flushes and returns the answer's error number.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn flush(&mut self) -> u32 {
        let cookie = self.send_header(0, 3, 0, 0);
        let (error, answered) = self.reply().expect("an answer");
        assert_eq!(answered, cookie);
        error
    }
}
