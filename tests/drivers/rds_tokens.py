"""Signs RDS tokens with botocore, its clock stopped: cases as JSON in a file, tokens as JSON on standard output."""

import datetime
import json
import sys
from unittest import mock

import botocore.auth
import botocore.session
from botocore.credentials import Credentials

clients = {}


def client(region):
    # One for each region: to make one takes a tenth of a second.
    if region not in clients:
        session = botocore.session.Session()
        session.set_credentials("nobody", "nothing")
        clients[region] = session.create_client("rds", region_name=region)
    return clients[region]


def token(case):
    now = datetime.datetime.fromtimestamp(case["epoch"], datetime.timezone.utc)

    def clock(remove_tzinfo=True):
        return now.replace(tzinfo=None) if remove_tzinfo else now

    signer = client(case["region"])
    signer._request_signer._credentials = Credentials(case["akid"], case["secret"], case["session"])
    # Newer ones have a function for it, older ones ask datetime.
    stopped = mock.Mock(wraps=datetime.datetime)
    stopped.utcnow = clock
    if hasattr(botocore.auth, "get_current_datetime"):
        patch = mock.patch("botocore.auth.get_current_datetime", clock)
    else:
        patch = mock.patch("botocore.auth.datetime.datetime", stopped)
    with patch:
        return signer.generate_db_auth_token(case["host"], case["port"], case["user"], Region=case["region"])


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        cases = json.load(file)
    json.dump([token(case) for case in cases], sys.stdout)


main()
