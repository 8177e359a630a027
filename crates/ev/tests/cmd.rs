//! The command line as a user sees it without a pool: helps, wrong lines, nobody there. Each file in `cmd/` shows commands
//! and all that they print; `TRYCMD=overwrite cargo nextest run -p ev` writes them anew.

#[test]
fn the_command_line() {
    let cases = trycmd::TestCases::new();
    // Nothing of this machine's own set-up takes part.
    cases.env("HOME", "/nonexistent").env("EV_SOCKET", "/nonexistent/evd.sock").env("COLUMNS", "100");
    cases.case("tests/cmd/*.trycmd");
}
