//! A name that stands for several addresses: whichever answers first.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How long an address has to answer before the next one is tried beside it (RFC 8305, section 5: 250 ms). An address where
/// nobody answers, such as one of a protocol that is not routed here, must not use up the time that all have together.
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to the first of `addresses` that answers. They are tried in this order.
pub(super) async fn connect(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    if let [address] = addresses[..] {
        return TcpStream::connect(address).await;
    }
    let (mut left, mut attempts) = (addresses.into_iter(), JoinSet::new());
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the name stands for no address");
    loop {
        if let Some(address) = left.next() {
            attempts.spawn(TcpStream::connect(address));
        } else if attempts.is_empty() {
            return Err(refused);
        }
        tokio::select! {
            Some(attempt) = attempts.join_next() => match attempt {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => refused = error,
                Err(error) => refused = error.into(),
            },
            () = tokio::time::sleep(HEAD_START), if left.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::net::TcpListener;

    /// An address where nobody answers: its queue is full. It is one for as long as what comes with it is kept.
    fn silent() -> (SocketAddr, Vec<Socket>) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut kept = vec![listener];
        for _ in 0..4 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address.into());
            kept.push(socket);
        }
        (address, kept)
    }

    /// An address that refuses.
    fn closed() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn peer_of(addresses: Vec<SocketAddr>) -> io::Result<SocketAddr> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { connect(addresses).await?.peer_addr() })
    }

    #[test]
    fn an_address_where_nobody_answers_does_not_keep_the_next_one_waiting() {
        let (silent, _kept) = silent();
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = open.local_addr().unwrap();
        assert_eq!(peer_of(vec![silent, there]).unwrap(), there);
        assert_eq!(peer_of(vec![closed(), silent, closed(), there]).unwrap(), there);
        assert_eq!(peer_of(vec![there, silent]).unwrap(), there);
    }

    #[test]
    fn what_all_addresses_refuse_is_refused() {
        assert_eq!(peer_of(vec![closed(), closed()]).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(peer_of(vec![closed()]).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(peer_of(Vec::new()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
