"""Pictures for the model: decoded, cropped, augmented and normalised.

On the host a picture is a uint8 array (height, width, 3), on the device a batch of such, or of
their patches; random numbers come from a `numpy.random.Generator` that the caller has keyed.
"""

from flipkit.preprocessing.augment import Augment as Augment
from flipkit.preprocessing.augment import affine as affine
from flipkit.preprocessing.augment import colour_jitter as colour_jitter
from flipkit.preprocessing.augment import grayscale as grayscale
from flipkit.preprocessing.augment import sketch as sketch
from flipkit.preprocessing.cropping import centre_crop as centre_crop
from flipkit.preprocessing.cropping import random_box as random_box
from flipkit.preprocessing.cropping import random_resized_crop as random_resized_crop
from flipkit.preprocessing.cropping import resize as resize
from flipkit.preprocessing.decoding import FORMATS as FORMATS
from flipkit.preprocessing.decoding import MAX_PIXELS as MAX_PIXELS
from flipkit.preprocessing.decoding import decode as decode
from flipkit.preprocessing.preprocessing import STATISTICS as STATISTICS
from flipkit.preprocessing.preprocessing import Preprocessing as Preprocessing
from flipkit.preprocessing.preprocessing import get as get
from flipkit.preprocessing.rand_augment import OPERATIONS as OPERATIONS
from flipkit.preprocessing.rand_augment import RandAugment as RandAugment
