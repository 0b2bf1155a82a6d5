"""What `bulkhead findings` makes of noise: it proves that the onset rule, with nothing but u* for a limit, keeps its 1% a study."""
import os
import unittest

import numpy as np

import findings_data as data


class Noise(data.FindingsTest):
    def test_noise_has_no_onset(self):
        """500 studies of one run each (static, slow and fast walks): an onset at u* alone, whatever its size, in at most 1%."""
        rng, found = np.random.default_rng(20), 0
        for study in range(500):
            run = data.noise_run(rng, layers=2, heads=2, steps=200, drift=(0.0, 0.1, 1.0)[study % 3])
            path = self.database([run], "noise.db")
            found += self.finding(self.judge(path, "--theta", "1.0001"), "onset", "mha")["verdict"] == "found"
            os.remove(path)
        self.assertLessEqual(found, 5)


if __name__ == "__main__":
    unittest.main()
