// Latin-1: café
fn main() {}
